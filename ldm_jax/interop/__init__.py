"""CompVis, diffusers and transformers formats, both ways."""
