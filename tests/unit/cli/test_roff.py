from __future__ import annotations

from nat_traverse.cli.roff import entry, escape, inline, prose, section, subsection


def test_fonts() -> None:
    assert inline("run `a-b` for *N* times") == r"run \fBa\-b\fR for \fIN\fR times"


def test_the_other_mark_is_literal_inside() -> None:
    assert inline("`a*b`") == r"\fBa*b\fR"


def test_nothing_is_taken_for_a_request() -> None:
    assert inline(".SH") == r"\&.SH"
    assert inline("'quoted'") == r"\(aqquoted\(aq"
    assert prose("x\n\n    .nf\n    \\fB\n") == ".PP\nx\n.PP\n.RS 4\n.nf\n\\&.nf\n\\efB\n.fi\n.RE\n"


def test_escapes() -> None:
    assert escape("a\\b-c'd`e^f~g") == r"a\eb\-c\(aqd\(gae\(haf\(tig"


def test_lines_of_a_paragraph_are_joined() -> None:
    assert prose("one\ntwo\n\nthree\n") == ".PP\none two\n.PP\nthree\n"


def test_examples_keep_theirs() -> None:
    assert prose("x\n\n    a  b\n      c\n") == ".PP\nx\n.PP\n.RS 4\n.nf\na  b\n  c\n.fi\n.RE\n"


def test_indented_source_is_no_example() -> None:
    assert prose("\n        one\n        two\n    ") == ".PP\none two\n"


def test_entries() -> None:
    assert entry("`-x`", "one\n\ntwo") == ".TP\n\\fB\\-x\\fR\none\n.IP\ntwo\n"


def test_sections() -> None:
    assert section("SEE ALSO", "a\n", "b\n") == ".SH SEE ALSO\na\nb\n"
    assert subsection("pppd", "a\n") == ".SS pppd\na\n"
