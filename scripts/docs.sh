#!/usr/bin/env bash
# Checks README.md, ARCHITECTURE.md, CONTRIBUTING.md and the book in docs/: links and anchors that lead nowhere, pages that the
# table of contents lacks, lines over 120 columns, files at the top that are too long. Builds the book into docs/book where
# mdbook is installed, as `scripts/setup.sh --ci` does.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

python3 - <<'END'
import re
import sys
from pathlib import Path

BOOK = Path("docs/src")
WIDTH = 120
MOST_BYTES = {"README.md": 12 * 1024, "ARCHITECTURE.md": 20 * 1024, "CONTRIBUTING.md": 10 * 1024}
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
problems = []


def lines_of(page):
    """The lines of a page with their numbers, and whether each stands in a block of code."""
    fence = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r" *(```+|~~~+)", line)
        if mark and fence is None:
            fence = mark[1]
            yield number, line, True
        elif mark and line.strip() == fence:
            fence = None
            yield number, line, True
        else:
            yield number, line, fence is not None


def anchors(page):
    """The anchors of a page's headings, as GitHub and mdbook make them."""
    found = {}
    for _, line, code in lines_of(page):
        heading = None if code else re.match(r"#{1,6} +(.*?) *#*$", line)
        if not heading:
            continue
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = found.get(name, 0)
        found[name] = count + 1
        if count:
            found[f"{name}-{count}"] = 1
    return found


def check(page):
    prose = ""  # with an empty line for each line of code, so that lines can be counted
    for number, line, code in lines_of(page):
        if len(line) > WIDTH and not line.startswith("|"):
            problems.append(f"{page}:{number}: {len(line)} columns, at most {WIDTH}")
        prose += ("" if code else re.sub(r"`[^`]*`", "", line)) + "\n"
    for link in LINK.finditer(prose):
        target = link[1]
        if re.match(r"[a-z]+:", target):
            continue
        place = f"{page}:{prose.count(chr(10), 0, link.end()) + 1}"
        path, _, anchor = target.partition("#")
        aim = page if not path else Path(page.parent, path)
        if not aim.exists():
            problems.append(f"{place}: {target}: there is no {aim}")
        elif BOOK in page.parents and BOOK.resolve() not in aim.resolve().parents:
            problems.append(f"{place}: {target} leads out of the book, where mdbook does not follow")
        elif anchor and anchor not in anchors(aim):
            problems.append(f"{place}: {target}: {aim} has no heading #{anchor}")


top, pages = [Path(name) for name in MOST_BYTES], sorted(BOOK.rglob("*.md"))
for page in [*top, *pages]:
    check(page)
for page in top:
    if (size := page.stat().st_size) > MOST_BYTES[page.name]:
        problems.append(f"{page}: {size} bytes, at most {MOST_BYTES[page.name]}")
summary = BOOK / "SUMMARY.md"
listed = {Path(BOOK, target) for target in LINK.findall(summary.read_text(encoding="utf-8"))}
problems += [f"{page}: {summary} does not list it" for page in pages if page != summary and page not in listed]

print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
print(f"{len(top) + len(pages)} documents, {len(problems)} problems")
sys.exit(bool(problems))
END

if command -v mdbook >/dev/null; then
    mdbook build docs
elif [ -n "${CI:-}" ]; then
    echo "mdbook is not installed, and must be where CI is set" >&2
    exit 1
else
    echo "mdbook is not installed: the book is not built"
fi
