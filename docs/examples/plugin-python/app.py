"""Kind `finger` (RFC 1288), as ../plugin-rust, in Python: who the plugin is. The connection is in codec_service.py, because
componentize-py looks for an exported resource in a module that is named after its interface."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.manifest import Description, Principal, Problem, Wants
from wit_world.imports.types import Endpoint

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "list": {
            "type": "boolean",
            "default": False,
            "description": "Whether an empty line, which asks who is there, is passed on.",
        }
    },
}


class Manifest(exports.Manifest):
    def describe(self) -> Description:
        return Description(
            kind="finger",
            protocol="Finger (RFC 1288)",
            version="0.1.0",
            summary="asks a finger server about a user",
            principals=[Principal("users", "whom the query is about")],
            settings_schema=json.dumps(SCHEMA),
            wants=Wants(
                endpoints=[Endpoint.MAIN],
                start_tls=False,
                challenges=[],
                send_secret=False,
                body_filters=False,
            ),
        )

    def validate(self, settings: str) -> None:
        problems = []
        for name, value in json.loads(settings or "{}").items():
            if name not in SCHEMA["properties"]:
                known = ", ".join(SCHEMA["properties"])
                problems.append(Problem(name, f"there is no such setting; there are: {known}"))
            elif not isinstance(value, bool):
                problems.append(Problem(name, "must be true or false"))
        if problems:
            raise Err(problems)


class CodecService(exports.CodecService):
    pass
