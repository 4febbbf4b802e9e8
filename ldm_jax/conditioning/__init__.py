"""Conditioners: from what a user gives (a prompt, a class) to what the denoiser takes."""
