"""Which proxy the environment names for an address, and what is wrong with it."""

from __future__ import annotations

import ipaddress
import os
import ssl
from typing import Final
from urllib.parse import urlsplit

from ddfs.fetch.address import Address, AddressError, in_one_line
from ddfs.fetch.dialing import describe_connect

# What httpx can speak to a proxy; socks5h leaves names to it, as socks5 does here too.
_SCHEMES: Final = ("http", "https", "socks5", "socks5h")


def uses_proxy(address: Address) -> bool:
    """Whether the environment sends requests to *address* through a proxy."""
    return proxy_of(address) is not None


def proxy_of(address: Address) -> str | None:
    """The proxy that the environment names for *address*, which then connects to it."""
    names = ("http_proxy", "https_proxy", "all_proxy")
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return None
    # Slow to import and only for those who have a proxy.
    from urllib.request import getproxies_environment, proxy_bypass

    proxies = getproxies_environment()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(f"{address.host}:{address.port}"):
        return None
    if _is_in_network(address.host, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in_network(host: str, no_proxy: str) -> bool:
    """Whether *host* is an address in a network of *no_proxy*, as ``10.0.0.0/8``."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for item in no_proxy.split(","):
        try:
            if "/" in item and address in ipaddress.ip_network(item.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def require_usable(proxy: str) -> None:
    """Raises :class:`AddressError` for what nobody can ask as a proxy."""
    try:
        parts = urlsplit(proxy)
        is_usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise AddressError(
            f"the environment names the proxy {shown(proxy)}, which is no address of one "
            f"({', '.join(f'{scheme}://HOST:PORT' for scheme in _SCHEMES)}); "
            "change http_proxy, https_proxy or all_proxy"
        )


def shown(proxy: str) -> str:
    """*proxy* without its login."""
    scheme, separator, rest = proxy.partition("://")
    return in_one_line(ValueError(f"{scheme}{separator}{rest.rpartition('@')[2]}"))


def unreachable(proxy: str, error: Exception) -> str | None:
    """What to say where *error*, of a connection, is the proxy's; None if it is another's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return None  # it is there, and what is behind it is not trusted
        if isinstance(cause, OSError):
            return f"the proxy {shown(proxy)} {describe_connect(cause)}"
        cause = cause.__cause__ or cause.__context__
    return f"the proxy {shown(proxy)} cannot be connected to: {in_one_line(error)}"
