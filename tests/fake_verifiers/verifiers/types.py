"""Messages and responses."""

from dataclasses import asdict, dataclass


@dataclass
class Message:
    role: str
    content: str

    def model_dump(self):
        return asdict(self)


@dataclass
class ResponseMessage:
    content: str
    finish_reason: str
    is_truncated: bool


@dataclass
class Response:
    id: str
    created: int
    model: str
    message: ResponseMessage
