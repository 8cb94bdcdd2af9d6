"""A hook of mkdocs: links that work in the repository become links of the site, or of the repository's website where they leave docs/."""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s]+)(?=\))")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any, **_: Any) -> str:
    """The page with its links rewritten.

    Args:
        markdown: the text of the page.
        page: mkdocs' page; its `file.src_uri` is the path below docs/. The first page is README.md, which lies above.
        config: mkdocs' configuration.
        files: all files of the site.
    """
    source = page.file.src_uri
    home = "README.md" if source == "index.md" else posixpath.join("docs", source)

    def rewritten(found: re.Match[str]) -> str:
        path, hash_, anchor = found.group(1).partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if target == "README.md":
            inside = "index.md"
        elif target.startswith("docs/"):
            inside = target.removeprefix("docs/")
        else:
            inside = ""
        if inside and (files.get_file_from_path(inside) or files.get_file_from_path(f"{inside}/README.md")):
            inside = inside if files.get_file_from_path(inside) else f"{inside}/README.md"
            return posixpath.relpath(inside, posixpath.dirname(source) or ".") + hash_ + anchor
        return f"{config.repo_url.rstrip('/')}/blob/main/{target}{hash_}{anchor}"

    return LINK.sub(rewritten, markdown)
