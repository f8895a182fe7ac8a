"""Files of a report on other collections: no model or folder overwrites those of another."""

from cxr.external import plots
from cxr.external.report import slug_of
from cxr.run_folder.evaluation_record import Metric


def test_different_names_have_different_slugs():
    deep = "x" * 80
    names = [("run", "nih"), ("a-b", "c"), ("a", "b-c"), ("a_b", "c"), ("A-b", "c")]
    names += [(f"/one/{deep}", "c"), (f"/two/{deep}", "c")]
    slugs = [slug_of(*one) for one in names]
    assert len({one.lower() for one in slugs}) == len(names) and slugs[0] == "run_nih"
    assert all(len(one) < 150 and "/" not in one for one in slugs)


def test_rows_of_a_long_model_name_have_the_names_of_their_folders(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "finish", lambda figure, axes, *args, **options: shown.append(axes))
    names = [f"/data/{'x' * 80}/model on {folder}" for folder in ("nih", "padchest")]
    plots.plot_aurocs([(name, None, Metric(value=0.8)) for name in names], tmp_path / "a.png", title="AUROC")
    labels = [label.get_text().replace("\n", "") for label in shown[0].get_yticklabels()]
    assert [label.replace(" ", "") for label in labels] == [name.replace(" ", "") for name in names]
