"""URLs of a crawl: one form for each page, which ones belong to it, and which look like a trap."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from w3lib.url import canonicalize_url

from data.sources.crawl_config import CrawlConfig

MAX_URL = 512  # characters
MAX_SEGMENTS = 14  # steps of a path
MAX_PARAMETERS = 5
MAX_QUERIES_PER_PATH = 100  # different query strings that one path may have
MAX_CALENDAR_PER_HOST = 100  # pages with a date in a calendar's address, for one host
TRACKING = re.compile(
    r"^(utm_\w+|gclid|fbclid|msclkid|mc_[ce]id|_ga|ref_src|phpsessid|jsessionid|sid|sessionid|session_id|s_cid)$", re.I
)
SESSION_IN_PATH = re.compile(r";(?:jsessionid|phpsessid|sid)=[^/?#]*", re.I)
CALENDAR = re.compile(
    r"calendar|/(?:day|week|month|events?|agenda)/|[?&](?:date|day|month|year|cal|tribe-bar-date)=", re.I
)
DATE = re.compile(r"(?:19|20|21)\d\d[-/]?(?:0?[1-9]|1[0-2])\b|[?&](?:year|month|date|day)=\d")
BINARY = re.compile(
    r"\.(?:jpe?g|png|gif|webp|svg|ico|bmp|tiff?|mp[34]|m4[av]|avi|mov|wmv|webm|ogg|wav|flac|zip|gz|bz2|xz|7z|rar|tar|tgz"
    r"|exe|dmg|iso|deb|rpm|msi|apk|jar|woff2?|ttf|eot|css|js|pdf|docx?|xlsx?|pptx?|epub|psd|swf)$",
    re.I,
)


def canonical(url: str, base: str = "") -> str | None:
    """One form for each page: absolute, lower-case host, no fragment, session or tracking parts, sorted query.

    None for what is no http(s) URL.
    """
    try:
        whole = urljoin(base, url.strip()) if base else url.strip()
        parts = urlsplit(whole)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            return None
        path = SESSION_IN_PATH.sub("", parts.path) or "/"
        query = [
            (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not TRACKING.match(name)
        ]
        host = parts.hostname.lower().rstrip(".")
        host = f"[{host}]" if ":" in host else host
        port = parts.port
        if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
            host = f"{host}:{port}"
        return str(canonicalize_url(urlunsplit((parts.scheme, host, path, urlencode(query), ""))))
    except (ValueError, UnicodeError):
        return None


def host_of(url: str) -> str:
    """Host and port, as politeness and limits count them."""
    return urlsplit(url).netloc


def twin(host: str) -> str:
    """The host with `www.` where it has none, and without where it has: a site's one name redirects to the other."""
    return host.removeprefix("www.") if host.startswith("www.") else f"www.{host}"


def trap(url: str) -> str | None:
    """Why a URL looks as if a program made it up without end, or None."""
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment]
    if len(url) > MAX_URL:
        return "url_too_long"
    if len(segments) > MAX_SEGMENTS:
        return "path_too_deep"
    if any(segments.count(segment) >= 4 for segment in set(segments)) or re.search(
        r"((?:/[^/]+){1,4})\1\1", parts.path
    ):
        return "path_repeats"
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if len(names) > MAX_PARAMETERS or len(set(names)) < len(names) - 1:
        return "query_too_long"
    return None


def is_calendar(url: str) -> bool:
    """Whether a URL looks like one page of a calendar, which goes on for all years."""
    return bool(CALENDAR.search(url) and DATE.search(url))


class Scope:
    """Which URLs belong to a crawl."""

    def __init__(self, config: CrawlConfig) -> None:
        hosts = {host_of(found) for seed in config.seeds if (found := canonical(seed))}
        self._hosts = hosts | {twin(host) for host in hosts}
        self._allow = [re.compile(pattern) for pattern in config.allow]
        self._deny = [re.compile(pattern) for pattern in config.deny]
        self._allowed_hosts = {host.lower() for host in config.allow_hosts}

    @property
    def hosts(self) -> set[str]:
        """Hosts of the seeds, with and without `www.`."""
        return self._hosts

    @property
    def named_hosts(self) -> set[str]:
        """Hosts that the config lets be reached though they are private."""
        return self._allowed_hosts

    def refusal(self, url: str) -> str | None:
        """Why a canonical URL is left out, or None."""
        if (why := trap(url)) is not None:
            return why
        if BINARY.search(urlsplit(url).path):
            return "file_type"
        if self.address_refused(url):
            return "private_address"
        if self._allow:
            if not any(pattern.search(url) for pattern in self._allow):
                return "not_allowed"
        elif host_of(url) not in self._hosts:
            return "other_host"
        if any(pattern.search(url) for pattern in self._deny):
            return "denied"
        return None

    def address_refused(self, url: str) -> bool:
        """Whether the host is written as an address, or a name such as localhost, that only this machine or net has."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        if self.host_allowed(host, parts.netloc):
            return False
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or private(host) is True

    def host_allowed(self, host: str, netloc: str = "") -> bool:
        """Whether the config lets this host be reached whatever its address is."""
        return host in self._allowed_hosts or (netloc or host) in self._allowed_hosts


def private(address: str) -> bool | None:
    """Whether an IP address is not on the public net; None for what is no address.

    The odd spellings that resolvers take (0x7f000001, 2130706433, 127.1) count as addresses.
    """
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        import socket

        if (
            not re.fullmatch(r"[0-9a-fA-Fx.]+", address)
            or not re.search(r"\d", address)
            or re.search(r"[g-wyz]", address)
        ):
            return None
        try:
            found = ipaddress.ip_address(socket.inet_aton(address))
        except (OSError, ValueError):
            return None
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return not (mapped or found).is_global
