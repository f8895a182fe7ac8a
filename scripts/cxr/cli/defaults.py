"""Parses the flags of the training scripts with defaults that fit the model, the sample or a recipe."""

import argparse

from cxr.choices import DEFAULT_MODEL
from cxr.choices import RECIPES
from cxr.cli import recipes
from cxr.cli.arguments import check_shared_arguments
from cxr.cli.command_line import ArgumentParser
from cxr.errors import UserError

# The default if neither data nor a model is given: a CPU trains it on the synthetic sample in minutes.
SAMPLE_MODEL = {
    "config_name": "vit-mae-tiny",
    "config_overrides": "hidden_size=96,intermediate_size=384,num_hidden_layers=4,patch_size=8",
    "image_size": 64,
}

PEAK_RATES = ("learning_rate", "base_learning_rate")


def parse_with_defaults(
    parser: ArgumentParser,
    argv: list[str] | None,
    *,
    script: str,
    default_learning_rates: dict[str, dict[str, float]],
    sample_defaults: dict[str, object],
) -> argparse.Namespace:
    """Parses and checks `argv`; some defaults depend on other flags.

    Without data and model, the defaults are `sample_defaults`: a model so small that a CPU trains it in
    minutes. With data but without a model, it is DEFAULT_MODEL. The learning rate is the one of
    `default_learning_rates` for "pretrained" or "scratch", unless `sample_defaults` has one. Those of the
    recipe for `script`, pretraining or classification, count more than all of these.
    """
    given = given_flags(parser, argv)
    defaults: dict[str, object] = {}
    if not given.keys() & {"model_name_or_path", "config_name"}:
        defaults = {"model_name_or_path": DEFAULT_MODEL} if "data_dir" in given else dict(sample_defaults)
    defaults = default_learning_rates["scratch" if "config_name" in given else "pretrained"] | defaults
    named = [of.get(name) for of in (given, defaults) for name in ("config_name", "model_name_or_path")]
    try:
        recipe = recipes.defaults_of(
            given.get("recipe", RECIPES[0]),
            script,
            given,
            model=next(filter(None, named)),
            from_scratch="config_name" in given | defaults,
        )
    except UserError as error:
        parser.error(str(error))
    if (given.keys() | recipe.keys()) & set(PEAK_RATES):
        defaults = {name: value for name, value in defaults.items() if name not in PEAK_RATES}
    parser.set_defaults(**defaults | recipe)
    args = parser.parse_args(argv)
    check_shared_arguments(parser, args)
    return args


def given_flags(parser: ArgumentParser, argv: list[str] | None) -> dict[str, object]:
    """Returns the flags that `argv` has, without defaults."""
    missing = object()
    none = dict.fromkeys(vars(parser.parse_args([])), missing)
    parsed = parser.parse_args(argv, argparse.Namespace(**none))
    return {name: value for name, value in vars(parsed).items() if value is not missing}
