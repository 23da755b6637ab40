"""One connection: the client's line is the question, its name the principal."""

import json
import re

from wit_world.exports import codec_service
from wit_world.exports.codec_service import (
    Step,
    Step_Authorize,
    Step_Close,
    Step_Connect,
    Step_NeedMore,
    Step_Skip,
    Step_Splice,
    Step_ToClient,
    Step_ToUpstream,
    StepResult,
    StepResult_Authorized,
    StepResult_Connected,
    StepResult_ConnectFailed,
    StepResult_Denied,
)
from wit_world.imports.types import Endpoint, Side

LONGEST = 512
QUERY = re.compile(rb"\s*(/W)?\s*([A-Za-z0-9._-]*)\s*")


def refuse(why: str) -> list[Step]:
    return [Step_ToClient(f"{why}\r\n".encode()), Step_Close(why)]


class Machine(codec_service.Machine):
    def __init__(self, settings: str) -> None:
        self.list = json.loads(settings or "{}").get("list", False)
        # What goes to the server: our own words, so that it gets what was decided about.
        self.query: bytes | None = None

    def on_open(self) -> list[Step]:
        return []

    def on_input(self, s: Side, data: bytes) -> list[Step]:
        if s == Side.UPSTREAM or self.query is not None:
            return [Step_Skip(len(data))]
        line, newline, _ = data.partition(b"\n")
        if not newline:
            return [Step_NeedMore()] if len(data) <= LONGEST else refuse("the query is too long")
        if b"@" in line:
            return refuse("queries are not forwarded to other hosts")
        query = QUERY.fullmatch(line)
        if query is None:
            return refuse("this is no user name")
        user = query[2].decode()
        if not user and not self.list:
            return refuse("say about whom; there is no list here")
        self.query = (b"/W " if query[1] else b"") + query[2] + b"\r\n"
        return [Step_Skip(len(line) + 1), Step_Authorize([("users", user)] if user else [])]

    def on_result(self, r: StepResult) -> list[Step]:
        match r:
            case StepResult_Authorized():
                return [Step_Connect(Endpoint.MAIN)]
            case StepResult_Connected():
                return [Step_ToUpstream(self.query or b""), Step_Splice(Side.UPSTREAM)]
            case StepResult_Denied(why) | StepResult_ConnectFailed(why):
                return refuse(why)
            case _:
                return refuse("the host gave an answer to no question")

    def on_close(self, s: Side) -> list[Step]:
        if s == Side.CLIENT and self.query is None:
            return [Step_Close("the client sent no query")]
        return []
