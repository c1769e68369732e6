"""Lists of URLs and domains that are not wanted.

    UrlBlockList(paths=("blacklists/adult/domains", "blacklists/adult/urls"), domains=("example.com",))

Files hold one entry a line (`#` starts a comment): a domain blocks its subdomains too, an entry with a slash blocks the
pages whose address starts with it. This is the layout of the University of
Toulouse lists that RefinedWeb and FineWeb use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from data.sources import files
from data.sources.limits import ReadLimits


def host_of(url: str) -> str:
    """The host in lower case without `www.`; "" where there is none."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    return host.rstrip(".").removeprefix("www.")


class UrlMatcher:
    """The lists in memory: two sets, a match costs one look-up a label and a path step."""

    def __init__(self, domains: set[str], prefixes: set[str]) -> None:
        self._domains, self._prefixes = domains, prefixes

    @staticmethod
    def host(url: str) -> str:
        """The host that `url` belongs to."""
        return host_of(url)

    def match(self, url: str) -> str | None:
        """The entry that blocks this URL, or None."""
        if not self._domains and not self._prefixes:
            return None
        host = host_of(url)
        labels = host.split(".")
        for index in range(len(labels)):
            suffix = ".".join(labels[index:])
            if suffix in self._domains:
                return suffix
        if self._prefixes and host:
            rest = url.partition("://")[2].partition("/")[2].partition("?")[0].rstrip("/")
            prefix = host
            for step in ["", *rest.split("/")]:
                prefix = f"{prefix}/{step}" if step else prefix
                if prefix in self._prefixes:
                    return prefix
        return None


@dataclass(frozen=True, kw_only=True)
class UrlBlockList:
    """Which pages are left out: entries given here and files of entries (plain or compressed, any fsspec path)."""

    domains: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def build(self) -> UrlMatcher:
        """Read the lists."""
        domains = {domain.lower().removeprefix("www.") for domain in self.domains}
        prefixes = {self._normal(url) for url in self.urls}
        limits = ReadLimits(max_record_bytes=1 << 16)
        for path in self.paths:
            with files.open_stream(path, limits) as stream:
                for _, line in files.iter_lines(stream, limits):
                    entry = line.decode("utf-8", "replace").partition("#")[0].strip() if isinstance(line, bytes) else ""
                    if "/" in entry:
                        prefixes.add(self._normal(entry))
                    elif entry:
                        domains.add(entry.lower().removeprefix("www."))
        return UrlMatcher(domains, prefixes)

    @staticmethod
    def _normal(url: str) -> str:
        address = url.partition("://")[2] or url
        host, slash, rest = address.partition("/")
        return host.lower().removeprefix("www.") + slash + rest.rstrip("/")

    def inputs_key(self) -> Any:
        """Fingerprints of the files; the other entries are settings."""
        return [files.fingerprint(entry) for path in self.paths for entry in files.list_files((path,), ())]
