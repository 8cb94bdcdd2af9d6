"""Small SVG files."""

from pathlib import Path

GOOD = {
    "arrow-left": "M20 11H7.83l5.59-5.59L12 4l-8 8 8 8 1.41-1.41L7.83 13H20v-2z",
    "circle": "M12 2A10 10 0 1 0 12 22A10 10 0 1 0 12 2Z",
    "square_outline": "M3 3H21V21H3zM5 5V19H19V5z",
    "heart": "M12 21C6 16 2 12 2 8A5 5 0 0 1 12 6A5 5 0 0 1 22 8C22 12 18 16 12 21Z",
    "home": "M10 20v-6h4v6h5v-8h3L12 3 2 12h3v8z",
    "wave": "M2 12Q7 2 12 12T22 12V20H2Z",
    "drop": "M12 2C12 2 5 10 5 15S8 22 12 22S19 19 19 15S12 2 12 2Z",
    "menu": "M3 6H21V8H3ZM3 11H21V13H3ZM3 16H21V18H3Z",
}
BROKEN = {
    "no-xml": "this is no file of that kind",
    "no-svg": "<html></html>",
    "no-box": '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0H9V9Z"/></svg>',
    "no-width": '<svg viewBox="0 0 0 24"><path d="M0 0H9V9Z"/></svg>',
    "no-numbers": '<svg viewBox="0 0 24 24"><path d="M0 0L1"/></svg>',
    "no-command": '<svg viewBox="0 0 24 24"><path d="5 5 6 6"/></svg>',
    "no-fill": '<svg viewBox="0 0 24 24" fill="none"><path d="M0 0H9V9Z"/></svg>',
    "no-area": '<svg viewBox="0 0 24 24"><path d="M4 4L8 8"/></svg>',
    "no-end": '<svg viewBox="0 0 24 24"><path d="M0 0H9V9Z">',
    "huge": '<svg viewBox="0 0 24 24"><path d="M0 0L1e999 5L3 3Z"/></svg>',
    "entities": '<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg viewBox="0 0 24 24"><path d="M0 0H9V9Z"/></svg>',
    "utf-7": '<?xml version="1.0" encoding="utf-7"?><svg viewBox="0 0 24 24"><path d="M0 0H9V9Z"/></svg>',
    "turned": '<svg viewBox="0 0 24 24"><g transform="rotate(45)"><path d="M0 0H9V9Z"/></g></svg>',
    "empty": "",
}


def svg(path: str, box: str = "0 0 24 24") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><path d="{path}"/></svg>'


def folder(root: Path, copies: int = 3, broken: bool = False) -> Path:
    """GOOD, each several times, and BROKEN."""
    root.mkdir(parents=True, exist_ok=True)
    for name, path in GOOD.items():
        for i in range(copies):
            (root / f"{name}-{i}.svg").write_text(svg(path, f"0 0 {24 + i} {24 + i}"))
    for name, text in BROKEN.items() if broken else ():
        (root / f"{name}.svg").write_text(text)
    return root
