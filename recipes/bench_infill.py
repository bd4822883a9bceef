"""Cost of a generated fill: the script that people write today against the backend, lever by lever, in one run.

Prints the Markdown table of docs/benchmarks.md. Weights are random, since they change no time: of a small model built
like Stable Diffusion 1.5 for inpainting or, for a GPU, with ``--model-size sd15`` of one of its size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
import transformers
from torchvision.transforms.v2 import functional as F

import infill_aug as ia
from infill_aug.cache.codec import encode_infill
from infill_aug.infill.diffusers.backend import DiffusersBackend, run_pipeline
from infill_aug.infill.diffusers.levers import compile_parts, remember_pictures, remember_texts
from infill_aug.infill.diffusers.loading import Source, load_pipeline

# Side, channels of the network, of the autoencoder and of the tiny one, width and layers of the text encoder.
SIZES = {
    "tiny": (128, (32, 64, 128, 128), (16, 32, 64, 64), (8,) * 4, 64, 4),
    "sd15": (512, (320, 640, 1280, 1280), (128, 256, 512, 512), (64,) * 4, 768, 12),
}


def store_model(root: Path, size: str) -> None:
    """Save a pipeline with random weights, and a tiny autoencoder beside it; its tokenizer knows letters only."""
    side, channels, coder, tiny, width, layers = SIZES[size]
    words = [chr(c) + end for end in ("", "</w>") for c in range(33, 127)] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "vocab_size": len(words)}
    diffusers.StableDiffusionInpaintPipeline(
        unet=diffusers.UNet2DConditionModel(side // 8, 9, block_out_channels=channels, cross_attention_dim=width),
        vae=diffusers.AutoencoderKL(
            3, 3, ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4, coder, 2, norm_num_groups=8),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(num_attention_heads=width // 16, **text)),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        tokenizer=tokenizer, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(root / "model")  # fmt: skip
    diffusers.AutoencoderTiny(3, 3, tiny, tiny).save_pretrained(root / "vae")


def arms_of(root: Path, pictures: torch.Tensor, device: torch.device, most: int) -> dict[str, Any]:
    """What is measured, by name: each fills and stores all pictures, as the one before with one thing more."""
    model, tiny, side, gpu = str(root / "model"), str(root / "vae"), pictures.shape[-1], device.type == "cuda"
    hole = torch.ones_like(pictures[:, :1], dtype=torch.bool)
    hole[..., side // 4 : side // 2, side // 4 : side // 2] = False
    image, mask = (pictures / 255).masked_fill(hole, 0).to(device), hole.to(device)
    few = {"steps": 4, "guidance": 1.0, "strength": 1.0, "max_batch": most, "compile": gpu}
    backend = DiffusersBackend(model, scheduler="lcm", vae=tiny, **few)
    task = ia.TaskDescriptor("bench", "cat", prompt="a beach", negative_prompt="a cat")
    call = dict(backend.model_config(task).options)

    def script(pipeline: Any, steps: int, guidance: float) -> None:
        call = {"height": side, "width": side, "num_inference_steps": steps, "guidance_scale": guidance}
        for i, picture in enumerate(pictures):
            shown = {"image": F.to_pil_image(picture), "mask_image": F.to_pil_image(hole[i].float())}
            drawn = pipeline("a beach", **shown, **call, generator=torch.Generator().manual_seed(i))
            drawn.images[0].save(root / f"{i}.png")

    def ours(pipeline: Any = None) -> None:
        for part in (slice(i, i + most) for i in range(0, len(pictures), most)):
            shown, seeds = (image[part], mask[part]), range(len(pictures))[part]
            fills = run_pipeline(pipeline, *shown, call, seeds) if pipeline else backend.generate_infill(*shown, task)
            for i, fill in zip(seeds, (fills * 255).round().to(torch.uint8).cpu(), strict=True):
                (root / f"{i}.webp").write_bytes(encode_infill(fill, hole[i], pictures[i])[0])

    def made(levers: int = 0, scheduler: str | None = "lcm") -> Any:
        source = Source(model, scheduler=scheduler, vae=tiny if levers > 2 else None)
        pipeline = load_pipeline(source, device).to(device)
        own = (remember_texts, partial(remember_pictures, most=2 * most), lambda _: None, compile_parts)
        for lever in own[:levers]:
            lever(pipeline)
        return pipeline

    arms = {"script: a picture a call, 50 steps, guidance, PIL, PNG": partial(script, made(scheduler=None), 50, 7.5)}
    arms["4 steps, no guidance (LCM)"] = partial(script, made(), 4, 1.0)
    more = [f"tensors, {most} a call, WebP of the hole", "texts encoded once", "pictures encoded once for all variants"]
    more += ["tiny autoencoder", *["compiled"] * gpu]
    arms |= {name: partial(ours, made(levers)) for levers, name in enumerate(more)}
    return arms | {"all of it, through the backend": ours}


def main() -> None:
    """Measure all arms in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", choices=SIZES, default="tiny")
    for name, value in {"pictures": 4, "variants": 2, "batch-size": 4, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    options = parser.parse_args()
    device, times = torch.device("cuda" if torch.cuda.is_available() else "cpu"), dict[str, list[float]]()
    pictures = torch.rand(options.pictures, 3, *[SIZES[options.model_size][0]] * 2)
    pictures = (pictures * 255).to(torch.uint8).repeat_interleave(options.variants, 0)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        store_model(Path(scratch), options.model_size)
        arms = arms_of(Path(scratch), pictures, device, options.batch_size)
        for name, run in [*arms.items()] * (options.rounds + 1):  # in turn: the machine's speed drifts
            started = time.perf_counter()
            run()  # ends with files, so nothing is left waiting on a GPU
            times.setdefault(name, []).append(1000 * (time.perf_counter() - started) / len(pictures))
    print(f"{vars(options)}, {device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| arm | ms a fill | faster than the arm above | than the script |\n" + "| --- " * 4 + "|")
    rows = [row[1:] for row in times.values()]  # the first round warms up
    for name, row, above in zip(times, rows, [rows[0], *rows], strict=False):
        step, whole = (median(b / a for a, b in zip(row, other, strict=True)) for other in (above, rows[0]))
        print(f"| {name} | {median(row):.1f} | {step:.2f} x | {whole:.1f} x |")


if __name__ == "__main__":
    main()
