"""The pages in hub_cards/ as HTML, to look at before they are published: python benchmarks/pages.py OUT."""

import html
import shutil
import sys
from pathlib import Path

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

CARDS = Path(__file__).parents[1] / "hub_cards"

HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }}
img {{ max-width: 100%; }}
pre {{ background: #f4f6f8; padding: 0.8rem; overflow-x: auto; font-size: 14px; }}
code {{ background: #f4f6f8; }}
td, th {{ padding: 0.15rem 0.8rem 0.15rem 0; text-align: left; vertical-align: top; }}
thead:not(:has(th:not(:empty))) {{ display: none; }}
details {{ font-size: 14px; color: #5a6672; }}
</style>
<details><summary>metadata</summary><pre>{metadata}</pre></details>
"""


def main(out: Path) -> None:
    links = []
    for folder in sorted(page.parent for page in CARDS.glob("*/README.md")):
        card, place = ModelCard.load(folder / "README.md"), out / folder.name
        place.mkdir(parents=True, exist_ok=True)
        for picture in folder.glob("*.png"):
            shutil.copy(picture, place)
        head = HEAD.format(title=folder.name, metadata=html.escape(card.data.to_yaml()))
        body = MarkdownIt("commonmark").enable("table").render(card.text)
        (place / "index.html").write_text(head + body, encoding="utf-8")
        links.append(f'<li><a href="{folder.name}/index.html">reloss/{folder.name}</a>')
    (out / "index.html").write_text(f"<!doctype html><title>hub_cards</title><ul>{''.join(links)}</ul>")
    print(f"{len(links)} pages: {out / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
