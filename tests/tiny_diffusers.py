"""Pipelines of diffusers small enough to make in a test: real classes with random weights, stored in a folder."""

import json

import torch

# Letters as CLIP and byte-level tokenizers have them: enough for every prompt of the tests.
_LETTERS = [chr(code) for code in range(33, 127)]


def _clip_tokenizer(folder):
    from transformers import CLIPTokenizer

    tokens = _LETTERS + [f"{letter}</w>" for letter in _LETTERS] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=77)


def _t5_tokenizer(folder):
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *_LETTERS]
    return T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _qwen_tokenizer(folder):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    letters = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*_QWEN_SPECIAL, *letters])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], pad_token="<|endoftext|>", additional_special_tokens=list(_QWEN_SPECIAL)
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def _clip(width=32, projection=False, **options):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=200,
        projection_dim=width, bos_token_id=188, eos_token_id=189, pad_token_id=189, **options,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _t5(width=32):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=120, tie_word_embeddings=False)
    )


def _vae(latent_channels=4, **options):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=latent_channels, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    )  # fmt: skip


def _unet(channels, **options):
    from diffusers import UNet2DConditionModel

    settings = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 32, "in_channels": channels,
        "out_channels": 4, "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **options})


def _sd(folder, kind, channels, **parts):
    import diffusers

    return getattr(diffusers, kind)(
        vae=_vae(), text_encoder=_clip(), tokenizer=_clip_tokenizer(folder / "words"), unet=_unet(channels),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **parts},
    )  # fmt: skip


def sd_text(folder):
    return _sd(folder, "StableDiffusionPipeline", 4)


def sd_inpaint(folder):
    return _sd(folder, "StableDiffusionInpaintPipeline", 9)


def sd_img2img(folder):
    return _sd(folder, "StableDiffusionImg2ImgPipeline", 4)


def instruct_pix2pix(folder):
    return _sd(folder, "StableDiffusionInstructPix2PixPipeline", 8)


def sdxl_inpaint(folder):
    import diffusers

    unet = _unet(
        9, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80, cross_attention_dim=64, use_linear_projection=True,
    )  # fmt: skip
    words = _clip_tokenizer(folder / "words")
    return diffusers.StableDiffusionXLInpaintPipeline(
        vae=_vae(), text_encoder=_clip(), text_encoder_2=_clip(projection=True), tokenizer=words, tokenizer_2=words,
        unet=unet, add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
            steps_offset=1,
        ),
    )  # fmt: skip


def _flow(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def sd3(folder):
    import diffusers

    words = _clip_tokenizer(folder / "words")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=16,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=_flow(), vae=_vae(16, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(projection=True), tokenizer=words, text_encoder_2=_clip(projection=True), tokenizer_2=words,
        text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(folder),
    )  # fmt: skip


def _flux(folder, kind, channels=16, guidance_embeds=True):
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip
    return getattr(diffusers, kind)(
        transformer=transformer, scheduler=_flow(), vae=_vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(), tokenizer=_clip_tokenizer(folder / "words"), text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(folder),
    )  # fmt: skip


def flux(folder):
    return _flux(folder, "FluxPipeline")


def flux_schnell(folder):
    return _flux(folder, "FluxPipeline", guidance_embeds=False)


def flux_fill(folder):
    # Latents, those of the picture, and the mask's pixels: 2 x 2 cells of 4 + 4 + 2 x 2 channels.
    return _flux(folder, "FluxFillPipeline", channels=48)


def flux_kontext(folder):
    return _flux(folder, "FluxKontextPipeline")


def _qwen_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    special = {name: i for i, name in enumerate(_QWEN_SPECIAL)}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000000.0},
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
                "fullatt_block_indexes": [0],
            },
            vision_start_token_id=special["<|vision_start|>"], vision_end_token_id=special["<|vision_end|>"],
            image_token_id=special["<|image_pad|>"], video_token_id=special["<|video_pad|>"],
        )
    )  # fmt: skip


def _qwen_parts(folder):
    import diffusers

    return {
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
        ),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        "scheduler": _flow(),
        "text_encoder": _qwen_vl(),
        "tokenizer": _qwen_tokenizer(folder),
    }  # fmt: skip


def qwen_image(folder):
    import diffusers

    return diffusers.QwenImagePipeline(**_qwen_parts(folder))


def qwen_edit(folder):
    import diffusers
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    parts = _qwen_parts(folder)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(), tokenizer=parts["tokenizer"], video_processor=Qwen2VLVideoProcessor(),
        chat_template=_CHAT,
    )  # fmt: skip
    return diffusers.QwenImageEditPipeline(**parts, processor=processor)


def _qwen3():
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=300, head_dim=8, max_position_embeddings=512,
        )
    )  # fmt: skip


def z_image(folder):
    import diffusers

    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 64, 64],
    )  # fmt: skip
    return diffusers.ZImagePipeline(
        transformer=transformer, scheduler=_flow(), vae=_vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_qwen3(), tokenizer=_qwen_tokenizer(folder),
    )  # fmt: skip


FACTORIES = {
    each.__name__: each
    for each in (
        sd_text, sd_inpaint, sd_img2img, instruct_pix2pix, sdxl_inpaint, sd3, flux, flux_schnell, flux_fill,
        flux_kontext, qwen_image, qwen_edit, z_image,
    )
}  # fmt: skip


def tiny_pipeline(folder, kind, seed=0):
    """Store a pipeline of one of ``FACTORIES`` in a folder; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FACTORIES[kind](folder.parent / f"{folder.name}-parts")
    pipeline.save_pretrained(folder)
    return str(folder)
