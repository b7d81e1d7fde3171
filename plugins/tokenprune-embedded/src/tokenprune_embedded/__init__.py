"""Small multimodal models and tasks for tokenprune: experiments on any CPU, offline."""
