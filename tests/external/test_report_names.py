"""Files of a report on other collections: no model or folder overwrites those of another."""

from cxr.external.report import slug_of


def test_different_names_have_different_slugs():
    deep = "x" * 80
    names = [("run", "nih"), ("a-b", "c"), ("a", "b-c"), ("a_b", "c"), ("A-b", "c")]
    names += [(f"/one/{deep}", "c"), (f"/two/{deep}", "c")]
    slugs = [slug_of(*one) for one in names]
    assert len({one.lower() for one in slugs}) == len(names) and slugs[0] == "run_nih"
    assert all(len(one) < 150 and "/" not in one for one in slugs)
