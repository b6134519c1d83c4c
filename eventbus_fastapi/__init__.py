"""eventbus-fastapi."""
