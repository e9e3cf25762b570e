"""Names of Serve deployments. A model's name may hold characters that Serve's may not."""

import hashlib
import re

from serve_app.names import ModelName

GATEWAY = "gateway"
LEDGER = "ledger"


def router_of(domain: ModelName) -> str:
    """Deployment name of the router of a fairness domain, usually one model's."""
    return f"router-{_slug(domain)}"


def engine_of(model: ModelName) -> str:
    """Deployment name of a model's engines."""
    return f"engine-{_slug(model)}"


def _slug(model: ModelName) -> str:
    """Keeps the name readable, and different names different."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", model)
    if slug == model:
        return slug
    return f"{slug}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
