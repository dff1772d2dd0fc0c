"""docs/reference.md: everything public with its docstring, read from the sources.

python tests/reference.py           fails unless docs/reference.md is what the sources say
python tests/reference.py --write   writes it anew
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "python" / "vbus"
PAGE = HERE.parent / "docs" / "reference.md"

FIRST = ("Node", "Channel", "Publisher", "Loan", "Subscriber", "Sample", "Watch", "Service", "Server")
"""In the order in which people meet them; others follow by name."""
INTERNAL = {
    *("draft_message", "forget_nudge", "look", "nudge", "publish_message", "raw_loan", "receive_message"),
    *("attempt", "draft", "ear", "news", "glance", "is_free", "receive_many_nowait", "room", "timed_out"),
    *("stats_dict", "take_message", "wait"),
    *("exchange", "forget", "open_call", "pending", "take", "timeout", "timeout_error", "turn"),
    *("check_open", "choose", "unsent"),
}
"""What the extension gives the Python layer, and twins and streams share with their helpers."""

HEAD = """# Reference

Every public name with what it promises, made by `./dev docs` of the docstrings. How the parts go together is
in the [tutorial](tutorial.md); every sentence that binds is in [API.md](API.md). All names are in `vbus`.
"""


@dataclass
class Member:
    """A method, a property or a field."""

    name: str
    signature: str
    doc: str


@dataclass
class Entry:
    """A public class or function."""

    name: str
    module: str
    signature: str
    doc: str
    members: list[Member]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--write"]):
        print("usage: reference.py [--write]", file=sys.stderr)
        return 2
    page = page_of(entries())
    if arguments:
        PAGE.write_text(page)
    if not PAGE.exists() or PAGE.read_text() != page:
        print("docs/reference.md is not what the docstrings say; run ./dev docs", file=sys.stderr)
        return 1
    return 0


# ---- what is public -----------------------------------------------------------------------------


def entries() -> list[Entry]:
    """Everything that `vbus` exports, but for the version."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    public = next(
        ast.literal_eval(it.value)
        for it in tree.body
        if isinstance(it, ast.Assign) and ast.unparse(it.targets[0]) == "__all__"
    )
    modules = imports_of(tree)
    found = [entry_of(name, modules[name]) for name in public if name != "__version__"]
    order = {name: at for at, name in enumerate(FIRST)}
    return sorted(found, key=lambda entry: (order.get(entry.name, len(order)), entry.name))


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Where each name of a module comes from, `.a.b` as it is written."""
    return {
        alias.asname or alias.name: "." * node.level + (node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }


def entry_of(name: str, module: str) -> Entry:
    if module == ".errors":  # drawn there as a tree, and born in the extension
        return Entry(name, module, name, "", [])
    tree = parse(module)
    node = next(it for it in tree.body if getattr(it, "name", "") == name)
    doc = ast.get_docstring(node) or ""
    if not isinstance(node, ast.ClassDef):
        return Entry(name, module, f"{name}{arguments_of(node)}", doc, [])
    members = {member.name: member for member in members_of(node)}
    signature = name
    for base in node.bases:
        # What a class has of the extension's, which it dresses.
        base_name = ast.unparse(base).partition("[")[0]
        origin = imports_of(tree).get(base_name)
        if origin == "._vbus":
            own = next(it for it in parse("._vbus").body if getattr(it, "name", "") in (base_name, name))
            members = {member.name: member for member in members_of(own)} | members
        elif base_name == "ClosingSlowly":  # what closes with a linger has the same ways to
            common = next(it for it in parse(".closing").body if getattr(it, "name", "") == base_name)
            members |= {it.name: it for it in members_of(common) if it.name not in members}
    makers = [it for it in node.body if getattr(it, "name", "") == "__init__"]
    if makers and name in ("Node", "Channel", "Service"):  # what people make themselves
        signature = f"{name}{arguments_of(makers[-1], method=True)}".removesuffix(" -> None")
    return Entry(name, module, signature, doc, list(members.values()))


def parse(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.lstrip(".").split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py", path.with_suffix(".pyi")):
        if candidate.exists():
            return ast.parse(candidate.read_text())
    raise FileNotFoundError(module)


def members_of(node: ast.ClassDef) -> Iterator[Member]:
    """Public ones, in order; of overloads the last, which is the method."""
    found: dict[str, Member] = {}
    # What only checkers see is declared under TYPE_CHECKING.
    body = [part for it in node.body for part in (it.body if isinstance(it, ast.If) else [it])]
    for at, item in enumerate(body):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            name, doc = item.name, ast.get_docstring(item) or ""
            is_property = any(ast.unparse(it) == "property" for it in item.decorator_list)
            returns = f": {ast.unparse(item.returns)}" if item.returns else ""
            signature = name + (returns if is_property else arguments_of(item, method=True))
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name, signature = item.target.id, f"{item.target.id}: {ast.unparse(item.annotation)}"
            doc = doc_after(body, at)
        else:
            continue
        if not name.startswith("_") and name not in INTERNAL:
            found.pop(name, None)
            found[name] = Member(name, signature, doc)
    yield from found.values()


def doc_after(body: list[ast.stmt], at: int) -> str:
    """The text below a field."""
    following = body[at + 1] if at + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return inspect.cleandoc(str(following.value.value))
    return ""


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef, *, method: bool = False) -> str:
    """As people write them: on one line, or one per line where that would be too long."""
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    told = [told_argument(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if args.kwonlyargs:
        told.append("*")
    told += [told_argument(arg, value) for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        told.append(f"**{told_argument(args.kwarg, None)}")
    if method:
        del told[0]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    flat = f"({', '.join(told)}){returns}"
    return flat if len(flat) <= LINE else "".join(["(", *(f"\n    {it}," for it in told), f"\n){returns}"])


LINE = 90


def told_argument(arg: ast.arg, default: ast.expr | None) -> str:
    told = f"{arg.arg}: {ast.unparse(arg.annotation)}" if arg.annotation else arg.arg
    return told if default is None else f"{told} = {ast.unparse(default)}"


# ---- the page -----------------------------------------------------------------------------------


def page_of(found: list[Entry]) -> str:
    errors = [entry for entry in found if entry.module == ".errors"]
    records = [entry for entry in found if entry.module == ".records"]
    lines = [HEAD]
    for entry in found:
        if entry not in errors and entry not in records:
            lines += [f"\n## {entry.name}\n", *code(entry.signature), entry.doc]
            for member in entry.members:
                lines += [f"\n### {entry.name}.{member.name}\n", *code(member.signature), member.doc]
    lines.append("\n## Records\n\nFrozen dataclasses. JSON of the command line has the same names.")
    for entry in records:
        lines += [f"\n### {entry.name}\n", entry.doc]
        if entry.members:
            lines += ["", *(f"- `{member.signature}`: {flat(member.doc)}" for member in entry.members)]
        else:
            lines += [f"`{entry.signature}`"] if entry.signature != entry.name else []
    lines.append(f"\n## Errors\n\n{ast.get_docstring(parse('.errors'))}")
    return "\n".join(lines) + "\n"


def code(signature: str) -> list[str]:
    return ["```text", signature, "```\n"]


def flat(doc: str) -> str:
    return " ".join(doc.split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
