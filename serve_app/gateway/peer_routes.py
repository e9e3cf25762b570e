"""What one cell's gateways tell another cell's: where a model's router is.

Who knows the router's key may use the engines as gateways do, so only cells are told: they show the
key that they share with their bank.
"""

import hmac

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from serve_app.cell_messages import ROUTER_PATH, AskRouter, RouterAt
from serve_app.config_cell import read_cells_key
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway import Gateway

_MOST_BYTES = 4096


def add_peer_routes(app: FastAPI, gateway: Gateway) -> None:
    """Adds the route /fleet/router."""

    @app.post(ROUTER_PATH, include_in_schema=False)
    async def router(request: Request) -> Response:
        """Says where a model's router is."""
        peers = gateway.peers
        if peers is None:
            raise ApiError(404, "This cell's engines are for its own requests alone.")
        key = f"Bearer {read_cells_key(peers.settings.key)}".encode()
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, key):
            raise ApiError(401, "Only cells that share this one's key are told.")
        asked = _read(await _read_body(request))
        endpoint = await gateway.find_router(asked.model)
        if endpoint is None:
            raise ApiError(404, "This cell does not have that model.")
        answer = RouterAt(peers.cell, endpoint.address, endpoint.key, peers.store)
        return Response(msgspec.json.encode(answer), media_type="application/json")


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ApiError(413, "Such a question is shorter.")
    return bytes(body)


def _read(body: bytes) -> AskRouter:
    try:
        return msgspec.json.decode(body, type=AskRouter)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"This is not what a cell asks: {error}") from error
