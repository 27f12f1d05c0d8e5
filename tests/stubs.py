"From a lesson's exercises to their stubs: signature and docstring stay, the body goes."
import ast
import re

MARK = re.compile(r"#\| (exercise|check) (\d\d\.\d+)")


def mark_of(source):
    "('exercise' or 'check', number) of a cell, or None."
    m = MARK.match(source)
    return (m[1], m[2]) if m else None


def stub_of(source):
    "The solution cell as a student finds it: functions raise NotImplementedError, answers are None; imports stay."
    out, lines = [], source.split("\n")
    for node in ast.parse(source).body:
        text = lines[node.lineno - 1 - len(getattr(node, "decorator_list", [])):node.end_lineno]
        if isinstance(node, ast.FunctionDef): out.append(_without_body(node, lines))
        elif isinstance(node, ast.ClassDef): out.append(_class_stub(node, lines))
        elif isinstance(node, (ast.Import, ast.ImportFrom)): out.append("\n".join(text))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            out.append(" = ".join(ast.unparse(t) for t in targets) + " = " + _nothing(targets[0]))
    return "\n".join([lines[0], *out, "# your answer goes here"])


def _nothing(target): return "(" + ", ".join(["None"]*len(target.elts)) + ")" if isinstance(target, ast.Tuple) else "None"


def _without_body(node, lines, indent=""):
    first = node.body[0]
    head = lines[node.lineno - 1 - len(node.decorator_list):first.lineno - 1]
    if not head or first.lineno == node.lineno: head = [lines[node.lineno - 1].split(":")[0] + ":"]
    doc = lines[first.lineno - 1:first.end_lineno] if ast.get_docstring(node) else []
    return "\n".join([*head, *doc, f"{indent}    raise NotImplementedError(\"not answered yet\")"])


def _class_stub(node, lines):
    parts = [lines[node.lineno - 1]]
    for f in node.body:
        if isinstance(f, ast.FunctionDef): parts.append(_without_body(f, lines, "    "))
        elif isinstance(f, ast.Expr): parts += lines[f.lineno - 1:f.end_lineno]
    return "\n".join(parts)
