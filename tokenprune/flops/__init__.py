"""FLOPs and cache bytes in closed form."""
