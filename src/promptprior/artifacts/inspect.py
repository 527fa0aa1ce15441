"""A readable page about artifact folders, for people deciding whether to trust and use them.

Nearest tokens: Lester et al. 2021 (arXiv 2104.08691, section 7) read prompts so; Khashabi et al. 2022 (arXiv
2112.08348) show that a prompt may lie next to any words and still do its task.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.artifact import Prior, Prompt, is_foreign, load_any
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.artifacts.blending import BLEND, blend_members
from promptprior.backbone.frozen import Frozen
from promptprior.config.mapping import flat_items, to_mapping
from promptprior.errors import ArtifactError
from promptprior.notation import Float, Tensor


def inspect_artifact(folder: Path | str) -> str:
    """What a folder holds: method, backbone, shapes, norms in units of the backbone's scale, what answers (a head, the
    members of a blend, the tokens of a bank), tasks, scores. Reads and checks everything, without the backbone. Raises
    ArtifactError as `from_pretrained` does."""
    folder = Path(folder)
    sections: dict[str, list[str]] = {}
    if is_foreign(folder):  # PEFT knows no backbone, so norms are absolute
        config, prompt = peft.read_adapter(folder)
        about = [
            f"prompt written by PEFT ({config['peft_type']}); it keeps no fingerprint, tasks or scores",
            f"backbone  {config.get('base_model_name_or_path')}",
        ]
        sections["tensors"] = [_tensor_line("prompt", prompt, prompt.shape[1], scale=1.0, unit="")]
        sections["settings"] = _value_lines(config)
    else:
        artifact = load_any(folder)
        header, card = artifact.header, artifact.header.backbone
        about = [
            f"{header.kind} of method {header.method} (written by {header.origin}, format {header.format_version})",
            f"backbone  {card.name} ({card.architecture}, width {card.width})",
            f"          fingerprint {card.fingerprint}, embedding scale {card.scale:.4g}",
        ]
        params = sorted(artifact.params.items())
        answering = sections["what answers"] = []
        if header.head:
            options = ", ".join(f"{name} {value}" for name, value in sorted(flat_items(header.head_settings)))
            answering.append(f"{header.head} head{f' ({options})' if options else ''} of {', '.join(header.choices)}")
        if header.parameterisation == BLEND and isinstance(artifact, Prompt):
            members = blend_members(artifact)
            weights, temperatures = (artifact.params[name][0].tolist() for name in ("weight", "temperature"))
            for member, weight, temperature in zip(members, weights, temperatures, strict=True):
                own = member.header
                form = f"{own.parameterisation}, {own.head} head" if own.head else own.parameterisation
                answering.append(f"weight {weight:.3f}  {own.method} ({form}), at temperature {temperature:.3g}")
        if header.parameterisation in ("bank", "mixture"):
            shapes = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in params)
            answering.append(f"each text makes its own prompt from what this {header.parameterisation} holds: {shapes}")
        tensors = [_tensor_line(name, value, card.width, card.scale, " x scale") for name, value in params]
        sections[f"tensors of {header.parameterisation}"] = tensors
        sections["tasks"] = [
            f"{task.role}  {task.name}  version {task.version}  fingerprint {task.fingerprint}  "
            + (f"{len(task.example_ids)} examples" if task.example_ids else "all of train")
            for task in header.tasks
        ]
        for name in ("scores", "diagnostics", "settings", "parameterisation_settings", "versions"):
            values = getattr(header, name)
            if name == "parameterisation_settings" and header.parameterisation == BLEND:
                continue  # the headers of all members; what answers names them
            sections[name.replace("_", " ")] = _value_lines(values)
    blocks = [about, *([title, *(f"  {line}" for line in lines)] for title, lines in sections.items() if lines)]
    return "\n\n".join(map("\n".join, blocks)) + "\n"


def artifact_facts(folder: Path | str) -> dict[str, Any]:
    """What `inspect_artifact` shows as plain values: the header, and shape and size of every tensor. PEFT's own folders
    have their adapter_config.json in place of a header."""
    folder = Path(folder)
    if is_foreign(folder):
        config, prompt = peft.read_adapter(folder)
        return {"folder": str(folder), "header": config, "tensors": {"prompt": {"shape": list(prompt.shape)}}}
    artifact = load_any(folder)
    scale, tensors = artifact.header.backbone.scale, {}
    for name, value in sorted(artifact.params.items()):
        rms = float(value.double().square().mean().sqrt()) if value.numel() else 0.0
        tensors[name] = {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "rms": rms,
            "rms_in_scales": rms / scale,
        }
    return {"folder": str(folder), "header": to_mapping(artifact.header), "tensors": tensors}


def nearest_tokens(prompt: Float[Tensor, "L D"], frozen: Frozen, count: int) -> list[dict[str, Any]]:
    """The `count` tokens of the vocabulary that are nearest to each of L vectors, by cosine and by Euclidean distance.

    `distance` is in embedding scales: the root of the mean squared difference of entries, so that two embeddings drawn
    at random are about 1.4 apart. `norm` is that of the vector over the median norm of the vocabulary.
    """
    table = frozen.vocabulary_embeddings.detach().float().cpu()  # [V, D]
    table = table * (frozen.card.scale / float(table.std()))  # some families scale embeddings in their forward pass
    prompt, norms = prompt.float().cpu(), table.norm(dim=1)
    cosine = torch.nn.functional.normalize(prompt, dim=1) @ torch.nn.functional.normalize(table, dim=1).T  # [L, V]
    apart = torch.cdist(prompt, table) / (table.shape[1] ** 0.5 * frozen.card.scale)  # [L, V]
    found = []
    for place, vector in enumerate(prompt):
        of_cosine, of_distance = cosine[place].topk(count), apart[place].topk(count, largest=False)
        sides = {"cosine": of_cosine, "distance": of_distance}
        near = {
            name: [
                {"token": frozen.tokenizer.decode([i]), name: value}
                for value, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            ]
            for name, top in sides.items()
        }
        found.append({"vector": place, "norm": float(vector.norm() / norms.median()), **near})
    return found


def similarities(artifacts: Mapping[str, Prior | Prompt]) -> list[dict[str, Any]]:
    """How like the prompts of every pair are. Raises ArtifactError where their backbones differ.

    `cosine` is that of all entries at once, where lengths agree; `matched` the mean over vectors of either side of the
    cosine with the most similar vector of the other, whatever the order; `distance` as in `nearest_tokens`. An artifact
    that holds no single prompt has `reason` in their place.
    """
    matrices, pairs = dict[str, Tensor | str](), []
    for name, artifact in artifacts.items():
        try:
            matrices[name] = single_prompt(artifact.headless, name)
        except ArtifactError as error:
            matrices[name] = str(error)
    for a, b in combinations(artifacts, 2):
        card = artifacts[a].header.backbone
        card.check(artifacts[b].header.backbone, b)
        one, other = matrices[a], matrices[b]
        if isinstance(one, str) or isinstance(other, str) or not len(one) or not len(other):
            reason = next((m for m in (one, other) if isinstance(m, str)), "a prompt of no tokens")
            pairs.append({"a": a, "b": b, "reason": reason})
            continue
        unit = [torch.nn.functional.normalize(m, dim=1) for m in (one, other)]
        table = unit[0] @ unit[1].T  # [L of a, L of b]
        matched = float((table.max(1).values.mean() + table.max(0).values.mean()) / 2)
        pair: dict[str, Any] = {"a": a, "b": b, "cosine": None, "matched": matched, "distance": None}
        if one.shape == other.shape:
            pair["cosine"] = float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))
            pair["distance"] = float((one - other).square().mean().sqrt()) / card.scale
        pairs.append(pair)
    return pairs


def _tensor_line(name: str, value: Tensor, width: int, scale: float, unit: str) -> str:
    # Name, shape and size of the entries; vectors of the backbone's width are measured in its scale.
    shape = " x ".join(map(str, value.shape))
    if not value.is_floating_point() or value.numel() == 0:
        return f"{name}  {shape}  ({value.dtype})"
    in_space = value.shape[-1] == width
    entries = value.float() / (scale if in_space else 1.0)
    rms, largest = entries.square().mean().sqrt(), entries.abs().max()
    each = entries.square().mean(-1).sqrt()  # rms of every vector: its norm over that of a typical embedding
    spread = f"; vectors {each.min():.3g} to {each.max():.3g}{unit}" if in_space and each.numel() > 1 else ""
    return f"{name}  {shape}  rms {rms:.3g}, largest {largest:.3g}{unit if in_space else ''}{spread}"


def _value_lines(mapping: Mapping[str, object]) -> list[str]:
    # Dotted names and values in a column; a table has a line for each of its rows.
    pairs = sorted(flat_items(mapping))
    column = max((len(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        texts = [f"{value:.6g}" if isinstance(value, float) else str(value)]
        if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping | list | tuple) for row in value):
            texts = [
                ", ".join(f"{key} {entry}" for key, entry in sorted(flat_items(row)))
                if isinstance(row, Mapping)
                else " ".join(f"{entry:.3g}" if isinstance(entry, float) else str(entry) for entry in row)
                for row in value
            ]
        lines += [f"{'' if i else name:{column}}  {text}" for i, text in enumerate(texts)]
    return lines
