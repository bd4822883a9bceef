"""What backends with weights are made with in tests: tiny random ones, made once a process."""

import functools
import tempfile
from pathlib import Path

# Backends that send pictures away: tests/test_infill_cloud.py has the services that they need.
CLOUD = ("http", "huggingface", "openai")
# Backends that are ready without weights.
PLAIN = ("donor", "noise", "push_pull", "telea")


@functools.cache
def tiny_options(name):
    """Options under which a backend fills offline within milliseconds."""
    folder = Path(tempfile.mkdtemp()) / name
    if name == "diffusers":
        from tiny_diffusers import tiny_pipeline

        return {"model": tiny_pipeline(folder, "sd_inpaint"), "size": 16, "steps": 1}
    if name == "diffusion":
        from tiny_networks import tiny_infiller

        tiny_infiller().save_pretrained(folder)
        return {"weights": str(folder)}
    if name == "mae":
        from tiny_networks import tiny_vitmae

        folder.mkdir()
        return {"checkpoint": str(tiny_vitmae(folder))}
    if name == "gan":
        from tiny_networks import tiny_inpainter

        return {"weights": tiny_inpainter(f"{folder}.pt")}
    return {}
