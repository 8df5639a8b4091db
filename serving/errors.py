"""What a request can end in instead of an answer; each becomes `{"error": "…"}` with its status.

Refusal             the request is not answered; the message says why, in words for who sent it
├── BadRequest      400  the request itself is wrong
├── Unauthorized    401  no token, or a wrong one
├── NotFound        404  no such model, version or page
├── SlowRequest     408  the body did not arrive in time
├── TooLarge        413  more bytes, pictures or pixels than allowed
├── Unsupported     415  not a JPEG, PNG or WebP picture
├── Overloaded      429  the queue is full, here or upstream
├── Unavailable     503  no model is loaded, or what computes is away
└── TooLate         504  no answer within the time allowed
"""

from typing import ClassVar


class Refusal(Exception):  # noqa: N818
    """Base of every answer that is not a success.

    Attributes:
        status: the HTTP status.
        retry_after: seconds after which asking again may help, sent as `Retry-After`; None where it will not.
    """

    status: ClassVar[int]
    retry_after: ClassVar[int | None] = None


class BadRequest(Refusal):
    status = 400


class Unauthorized(Refusal):
    status = 401


class NotFound(Refusal):
    status = 404


class SlowRequest(Refusal):
    status = 408


class TooLarge(Refusal):
    status = 413


class Unsupported(Refusal):
    status = 415


class Overloaded(Refusal):
    status = 429
    retry_after = 1


class Unavailable(Refusal):
    status = 503
    retry_after = 1


class TooLate(Refusal):
    status = 504
