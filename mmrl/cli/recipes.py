"""`mmrl recipes [SLUG]`. Loads no torch."""

from __future__ import annotations

import typer


def recipes(slug: str | None = typer.Argument(None, help="Show this recipe's file.")) -> None:
    """List the recipes, or show one."""
    from mmrl import recipes as catalogue

    if slug is not None:
        path = catalogue.locate(slug)
        typer.echo(path.read_text(encoding="utf-8").rstrip())
        return
    names = catalogue.available()
    width = max((len(name) for name in names), default=0)
    for name in names:
        recipe = catalogue.read(name)
        arxiv = (recipe.get("paper") or {}).get("arxiv")
        mark = " [reconstruction]" if recipe.get("reconstruction") else ""
        typer.echo(f"{name:<{width}}  {recipe.get('title', '')}{f'  (arXiv {arxiv})' if arxiv else ''}{mark}")
