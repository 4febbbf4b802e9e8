"""First stages: pictures to latents and back."""
