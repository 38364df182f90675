"""What a job server answers when it refuses, as errors of medray, without what may hold a token."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from medray.errors import MachineError, UserError

TOKEN = "export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the token of this cluster"


class Unreachable(MachineError):
    """No answer: whether a request was heard is not known."""


class Missing(MachineError):
    """There is no such job."""


class Exists(MachineError):
    """There is a job of this id."""


@contextmanager
def answered(url: str) -> Generator[None]:
    """Ray's errors as ours, without what may hold a token. Raises UserError, Unreachable, MachineError."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise _refused(url, str(error)) from None
    except (requests.exceptions.InvalidHeader, UnicodeError):  # their text quotes it
        raise UserError(
            "the token cannot be sent: it holds characters that no token has", where=url, do=TOKEN
        ) from None
    except aiohttp.WSServerHandshakeError as error:
        raise _by_status(url, error.status, error.message) from None
    except (requests.exceptions.RequestException, aiohttp.ClientError, OSError) as error:  # ConnectionError, timeouts
        if _is_about_tls(error):
            plain = "VERIFY_FAILED" not in str(error.__context__ or "") + str(error)
            raise UserError(
                "no safe connection to the job server",
                where=url,
                found="it speaks no TLS" if plain else "its certificate is not accepted",
                do="" if plain else "--ca FILE with the certificate of the authority that signed it",
            ) from None
        raise Unreachable(
            "the job server does not answer",
            where=url,
            found=type(error).__name__,
            do="check the address, and that the head of the cluster runs with its dashboard",
        ) from None
    except (RuntimeError, ValueError, KeyError) as error:
        if type(error) is not RuntimeError:
            raise MachineError("no job server of Ray answers here", where=url, found=str(error)[:200]) from None
        status = re.search(r"status code (\d+)", str(error))
        raise _by_status(url, int(status[1]) if status else 0, str(error)) from None


def _by_status(url: str, status: int, text: str) -> Exception:
    if status in (401, 403):
        return _refused(url, "Authentication required" if status == 401 else "Authentication failed")
    if "already exists" in text:
        return Exists("there is a job of this id", where=url)
    if status == 404 and "not exist" in text:
        return Missing("there is no such job", where=url)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    kind = Unreachable if status in (0, 502, 503, 504) else MachineError
    return kind("the job server answers with a fault", where=url, found=f"{status or ''} {last[:300]}".strip())


def _refused(url: str, answer: str) -> UserError:
    """401, 403, or a client that is to send a token and finds none."""
    token = (
        "none was sent"
        if "required" in answer
        else "another one was sent"
        if "failed" in answer
        else "there is none here"
    )
    return UserError("the cluster asks for its token; nothing was started", where=url, found=token, do=TOKEN)


def _is_about_tls(error: BaseException | None) -> bool:
    import aiohttp
    import requests

    kinds = (requests.exceptions.SSLError, aiohttp.ClientSSLError)
    return error is not None and (isinstance(error, kinds) or _is_about_tls(error.__context__))
