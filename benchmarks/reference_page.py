"""Fill docs/reference.md from the docstrings of what `bmtpt`, `bmtpt.sklearn` and `bmtpt.serve.errors` export.

python benchmarks/reference_page.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
GROUPS = {
    "Learn and adapt": ("bmtpt.learn", "bmtpt.Posterior", "bmtpt.Prompt", "bmtpt.Evaluation"),
    "Settings": ("bmtpt.LearnSettings", "bmtpt.AdaptSettings"),
    "Models": ("bmtpt.Backbone",),
    "Tasks": ("bmtpt.task", "bmtpt.Task", "bmtpt.TaskData"),
    "scikit-learn": ("bmtpt.sklearn.SoftPromptClassifier",),
    "Clients of a server": ("bmtpt.Client", "bmtpt.AsyncClient"),
    "Errors": ("bmtpt.BmtptError", "bmtpt.errors", "bmtpt.serve.errors"),
}
HEAD = """# API reference

Made from the docstrings by `python benchmarks/reference_page.py`; a test keeps the page equal to them. How the parts go
together, with examples: [library.md](library.md). Every command's options: `bmtpt COMMAND -h`.
"""
READ = {"docstring_parser": "google", "docstring_options": {"warnings": False}}
Found = griffe.Object | griffe.Alias
ATTRIBUTES = griffe.DocstringSectionKind.attributes
DEFAULT = re.compile(r"Field\(default=(.+?), .*\)")
CODE = re.compile(r"(`[^`]+`)")


def page() -> str:
    """Return the page."""
    package = griffe.load("bmtpt", search_paths=[str(ROOT / "src")], resolve_aliases=True, **READ)
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            found = package[name.removeprefix("bmtpt.")]
            parts += errors(found) if found.is_module else entry(found, name)
    return "\n".join(parts).rstrip() + "\n"


def entry(found: Found, name: str) -> Iterator[str]:
    """Yield a function's section, or a class's with those of its public methods."""
    yield f"### {name}\n"
    if found.is_function:
        yield signature(found, name)
    elif "__init__" in found.members:
        yield signature(found.members["__init__"], name)
    yield from told(found)
    if not found.is_class:
        return
    own = name.rpartition(".")[2]
    for member in found.all_members.values():
        if member.docstring and not member.name.startswith("_") and (member.is_function or "property" in member.labels):
            yield f"#### {own}.{member.name}\n"
            if member.is_function:
                yield signature(member, f"{own}.{member.name}")
            yield from told(member)


def signature(found: Found, name: str) -> str:
    """Return how a function is called, one line for each parameter if they are many."""
    returned = f" -> {found.returns}" if found.returns and found.name != "__init__" else ""
    shown = found.signature(name=name, return_type=False) + returned
    if len(shown) > 110:
        start, _, rest = shown.partition("(")
        inner, _, end = rest.rpartition(")")
        parameters = re.split(r", (?![^\[(]*[\])])", inner)
        shown = f"{start}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){end}"
    return f"```text\n{shown}\n```\n"


def told(found: Found) -> Iterator[str]:
    """Yield what a docstring says, section by section."""
    for section in found.docstring.parsed if found.docstring else ():
        if section.kind is griffe.DocstringSectionKind.text:
            yield f"{escaped(section.value.partition('>>>')[0].strip())}\n"
        else:
            told_of = fields(found) if section.kind is ATTRIBUTES else section.value
            yield f"{section.title or section.kind.value.capitalize()}:\n"
            yield "\n".join(f"- {item(found, each)}" for each in told_of) + "\n"


def fields(found: Found) -> list[griffe.DocstringElement]:
    """Return the attributes that the docstrings of a class and of its bases describe."""
    sections = [section for each in (found, *found.mro()) if each.docstring for section in each.docstring.parsed]
    told_of = [each for section in sections if section.kind is ATTRIBUTES for each in section.value]
    return list({each.name: each for each in reversed(told_of)}.values())[::-1]


def item(owner: Found, each: griffe.DocstringElement) -> str:
    """Return one argument, field, result or error with what is said of it."""
    text = escaped(" ".join(each.description.split()))
    name, kind = getattr(each, "name", "") or "", str(each.annotation or "").strip("()")
    if isinstance(each, griffe.DocstringRaise) or not name:
        return f"`{kind}`: {text}" if kind else text
    if not isinstance(each, griffe.DocstringAttribute):
        return f"`{name}`: {text}"
    if name.endswith(","):  # several of a kind, of which griffe takes all but the first for a type
        return f"`{name} {kind}`: {text}"
    field = owner.all_members.get(name)
    known = (
        [DEFAULT.sub(r"\1", str(part)) for part in (field.annotation, field.value) if part is not None] if field else []
    )
    return f"`{name}`{' (' + ', '.join(f'`{part}`' for part in known) + ')' if known else ''}: {text}"


def errors(module: Found) -> Iterator[str]:
    """Yield a module's errors and when each is raised."""
    yield f"### {module.path}\n"
    kinds = [each for each in module.members.values() if not each.is_alias and each.is_class and each.docstring]
    yield "\n".join(f"- `{each.name}`: {escaped(first(each))}" for each in kinds) + "\n"


def first(found: Found) -> str:
    """Return a docstring's first paragraph on one line."""
    return " ".join(found.docstring.value.partition("\n\n")[0].split())


def escaped(text: str) -> str:
    """Return text in which an angle bracket outside of code is no tag."""
    parts = CODE.split(text.replace("``", "`"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
