"""What a model takes along to other people: its card, which says what is known of it and no more, and the upload."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict

from torch import nn

from redraft import recipes
from redraft.data import Tokenizer
from redraft.errors import unknown
from redraft.files import read_object, write_text
from redraft.models import released
from redraft.models.backbone import BackboneDenoiser
from redraft.models.families import FAMILIES
from redraft.processes import Process
from redraft.processes.base import Facts
from redraft.training.checkpoint import flatten

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

README, RESULTS = "README.md", "results.json"
PLACE = "path/to/this/folder"
"""What stands in the card for the model's name, where it has none."""
OLD_WEIGHTS = (".safetensors", ".safetensors.index.json")
"""Of an earlier upload: an index left behind would be read in place of the new weights."""


class CardFields(TypedDict, total=False):
    """What no file of a model says, as the Hub's front matter has it: a licence's short name, ids of models and data.

    ``base_model``: what it was trained from; known already where it was loaded from the Hub. ``language``: codes such
    as ``en``.
    """

    license: str
    base_model: str | list[str]
    datasets: str | list[str]
    language: str | list[str]


def facts(denoiser: nn.Module, tokenizer: Tokenizer, about: Mapping[str, Any]) -> dict[str, str]:
    """What a denoiser declares, and what it is made of: name and value, as the card's table has them."""
    declared, process = _declared(denoiser)
    weights = list(denoiser.parameters())
    found: dict[str, Any] = {
        "family": about.get("family"),
        "process": _line({name: one for name, one in process.to_dict().items() if name != "mask_id"}),
        "mask id": declared.mask_id,
        "end of text id": declared.eos_id,
        "padding id": declared.pad_id,
        "posterior": declared.posterior,
        "told the time": _yes(declared.time_conditioned),
        "logits": ("shifted by one" if denoiser.meaning.shift else "aligned")
        if isinstance(denoiser, BackboneDenoiser)
        else None,
        "attention": declared.attention,
        "block": declared.block,
        "context": f"{about['context']} tokens",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.K} tokens",
        "parameters": f"{sum(one.numel() for one in weights):,}",
        "precision": ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in weights})),
    }
    if (family := FAMILIES.get(str(about.get("family")))) is not None and family.decoding:
        found["decoding of its authors"] = _line(family.decoding)
    return {name: str(value) for name, value in found.items() if value is not None}


def card(
    denoiser: nn.Module,
    tokenizer: Tokenizer,
    about: Mapping[str, Any],
    results: Mapping[str, Any],
    told: CardFields,
    name: str = PLACE,
) -> "ModelCard":
    """The model card: front matter, how to load and write, the facts, how it was trained and how it measured.

    ``results`` is what results.json of its run says, or nothing. What is not known is left out. Errors: ``ValueError``
    for something told that a card does not have.
    """
    from huggingface_hub import ModelCard, ModelCardData

    for field in told:
        if field not in CardFields.__annotations__:
            raise unknown("field of a model card", field, CardFields.__annotations__)
    recipe: Mapping[str, Any] = about.get("recipe") or results.get("recipe", {})
    title = str(recipe.get("recipe") or about.get("family") or "model")
    front: dict[str, Any] = {name: about[name] for name in ("base_model",) if name in about} | dict(told)
    if measured := _evaluations(results, recipe):
        front |= {"eval_results": measured, "model_name": title}
    tags = ["diffusion-language-model"]
    data = ModelCardData(library_name="redraft", pipeline_tag="text-generation", tags=tags, **front)
    parts = [f"# {title}", "A diffusion language model, stored by `redraft`."]
    parts += [_use(name, about), "## Facts", _table(facts(denoiser, tokenizer, about))]
    parts += _training(recipe, results)
    parts += _likelihood(results, recipe)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def results_of(folder: Path) -> dict[str, Any]:
    """What results.json of a run's folder says, nothing without one. Errors: ``ValueError`` for a damaged one."""
    path = folder / RESULTS
    return read_object(path) if path.is_file() else {}


def results_beside(folder: Path) -> dict[str, Any]:
    """``results_of`` a released model's folder, where other tools leave files of that name: nothing of theirs."""
    with suppress(ValueError):
        found = results_of(folder)
        return found if {"recipe", "machine"} <= found.keys() else {}
    return {}


def store(folder: Path, written: "ModelCard", results: Mapping[str, Any]) -> None:
    """Write the card, and results.json if there is something to say, beside a model's other files."""
    write_text(folder / README, str(written))
    if results:
        write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")


def portable(about: Mapping[str, Any]) -> dict[str, Any]:
    """``about`` without the folders of this machine: of a file or folder named in full, its own name is left."""

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: (command if name == "command" else shortened)(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [shortened(one) for one in value]
        named = isinstance(value, str) and (value.startswith(("~", ".")) or Path(value).is_absolute())
        return Path(value).name or value if named else value

    def command(value: Any) -> Any:
        """What was typed, word for word: ``--out=FILE`` is one."""
        if not isinstance(value, str):
            return shortened(value)
        words = [word.partition("=") if word.startswith("-") else ("", "", word) for word in shlex.split(value)]
        return shlex.join(f"{option}{sign}{shortened(word)}" for option, sign, word in words)

    kept = {"files", "config"}  # files of a released model, which stay as they came
    return {name: value if name in kept else shortened({name: value})[name] for name, value in about.items()}


def upload(
    write: Callable[[Path], object], repo_id: str, *, private: bool | None, revision: str | None, token: str | None
) -> str:
    """Let ``write`` fill a folder that is gone afterwards, and make it a commit of the repository; the commit's URL.

    Nothing is created on the Hub before the folder is whole. Errors: ``ValueError`` for an id that is none, a private
    upload to a public repository, and for whatever the Hub refuses, without the token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    lost: type[Exception] = HfHubHTTPError.__mro__[1]  # of whichever HTTP client that package uses, by its version
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise ValueError(f"{repo_id!r} has no owner; pass owner/name")
        with TemporaryDirectory(prefix="redraft-") as folder:
            write(Path(folder))
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise ValueError(f"{repo_id} is there already and public; make it private first, or choose another")
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            old = [escape(one) for one in api.list_repo_files(repo_id, revision=revision) if _is_old(one)]
            made = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message="Upload by redraft",
                delete_patterns=old or None,
            )
            return str(made.commit_url)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository ({error}); pass owner/name") from None
    except (HfHubHTTPError, lost, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{repo_id}: the upload failed ({_without(token, reason)})") from None


def _is_old(name: str) -> bool:
    """Whether a file of a repository is of an earlier upload's weights; what lies in folders is not ours."""
    return "/" not in name and name.endswith(OLD_WEIGHTS)


def _declared(denoiser: Any) -> tuple[Facts, Process]:
    return denoiser.facts, denoiser.process


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _line(values: Mapping[str, Any]) -> str:
    """``masked, K 13, schedule linear``: a mapping in words, the name first and without what is None."""
    inner = {name: _line(one) if isinstance(one, Mapping) else one for name, one in values.items() if one is not None}
    first = [str(inner.pop("name"))] if "name" in inner else []
    return ", ".join(first + [f"{name} {one}" for name, one in inner.items()])


def _table(rows: Mapping[str, str]) -> str:
    cells = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| fact | value |", "|---|---|", *cells])


def _use(name: str, about: Mapping[str, Any]) -> str:
    """How to load it and write with it; the family, where config.json does not tell it."""
    options = ""
    if "family" in about:
        try:
            released.family_of(Path(), json.loads(about["config"]))
        except ValueError:
            options = f", family={about['family']!r}"
    lines = ["import redraft as rd", "", f"lm = rd.load({name!r}{options})", "print(lm.generate(seed=0).text)"]
    own = "\n\n`transformers` reads it too, as a masked language model, after `import redraft.models.hf`."
    return "\n".join(["```python", *lines, "```"]) + ("" if "family" in about else own)


def _training(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    """The recipe: the fields in which it differs from the one of its name, or all of it where there is none."""
    if not recipe:
        return
    yield "## Training"
    name = str(recipe.get("recipe"))
    if name in recipes.RECIPES:
        usual = flatten(recipes.to_dict(recipes.get(name)))
        changed = {field: value for field, value in flatten(recipe).items() if usual.get(field, value) != value}
        differing = "\n".join(f"- {field}: {json.dumps(value)}" for field, value in changed.items())
        yield f"Recipe `{name}` of redraft" + (f", with\n\n{differing}" if changed else ", as it is.")
    else:
        yield f"```json\n{json.dumps(recipe, indent=2)}\n```"
    if "tokens_trained_on" in results:
        yield f"Trained on {results['tokens_trained_on']:,} tokens."


def _likelihood(results: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """The measured likelihood with its estimator and interval; nothing where none was measured."""
    if "nats_per_token" not in results:
        return
    yield "## Likelihood"
    kind = "a bound: the truth lies at or below" if results["is_bound"] else "exact"
    rows = {"nats per token": _interval(results, "nats_per_token")}
    if results.get("bits_per_char") is not None:
        rows["bits per character"] = _interval(results, "bits_per_char")
    rows |= {
        "estimator": f"{results['estimator']} ({kind})",
        "draws a row": str(results["draws"]),
        "text": f"{_source(recipe)}, kept to measure on: {results['rows']:,} rows, {results['tokens']:,} tokens",
        "seed": str(results["seed"]),
    }
    yield _table(rows)
    yield "± is half a 95% interval over rows of text; how trainings differ is not in it."


def _interval(results: Mapping[str, Any], name: str) -> str:
    return f"{results[name]:.5g} ± {results[name + '_error']:.2g}"


def _source(recipe: Mapping[str, Any]) -> str:
    return str(recipe.get("data", {}).get("source", "the training text"))


def _evaluations(results: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[Any]:
    """The likelihood as the Hub lists results."""
    if "nats_per_token" not in results or not recipe:
        return []
    from huggingface_hub import EvalResult

    kind = "bound" if results["is_bound"] else "exact"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_source(recipe),
            dataset_name=_source(recipe),
            metric_type="nats_per_token",
            metric_name=f"nats per token ({kind}, {results['estimator']})",
            metric_value=results["nats_per_token"],
        )
    ]


def _without(token: str | None, text: str) -> str:
    """``text`` without the token given or the one this machine is logged in by."""
    from huggingface_hub import get_token

    for secret in (token, get_token()):
        text = text.replace(secret, "***") if secret else text
    return text
