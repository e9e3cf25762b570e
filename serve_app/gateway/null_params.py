"""Parameters whose null vLLM takes and cannot answer: it fails when the whole text is generated.

In OpenAI's API null says the default, as leaving the parameter out does; so it is left out.
"""

import msgspec

_NULLABLE = {"/v1/responses": ("background", "truncation")}
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def drop_nulls(path: str, body: bytes) -> bytes:
    """Returns a body without those parameters where they are null.

    Args:
        path: What is asked.
        body: A JSON object, as far as `peek` has looked.
    """
    names = _NULLABLE.get(path, ())
    if not names or b"null" not in body:
        return body
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body  # vLLM says what is wrong with it.
    for name in names:
        if fields.get(name) == msgspec.Raw(b"null"):
            del fields[name]
    return msgspec.json.encode(fields)
