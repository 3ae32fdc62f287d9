"""When to stop: the `early_stopping` section, and the decision after an epoch as a pure function of the history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from raynn.rules import REQUIRED, RULES, SECTION_KEYS, Curve, RuleSettings


class EarlyStoppingSettings(RuleSettings):
    """When to stop on `monitor`: by one `rule`, by any of several, or when all of several hold at once.

    A rule uses the keys that begin their description with its name. The weights of the epoch with the best `monitor`
    return. With `reductions`, a rule first takes training back to the best weights and lowers the learning rate.
    """

    monitor: Annotated[str, Field(description="<split>/<quantity>; its best epoch gives the weights")] = "val/loss"
    smoothing: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of the past in a moving average that rules see; 0: raw")
    ] = 0.0
    any: Annotated[tuple[RuleSettings, ...], Field(description="stop when one of these rules says so")] = ()
    all: Annotated[tuple[RuleSettings, ...], Field(description="stop when all of these rules say so at once")] = ()
    warmup_epochs: Annotated[int, Field(ge=0, description="first epochs, after which no rule stops")] = 0
    reductions: Annotated[
        int, Field(ge=0, description="so often go back to the best weights at a lower rate, before stopping")
    ] = 0
    factor: Annotated[float, Field(gt=0.0, lt=1.0, description="of the learning rate, each of `reductions`")] = 0.1

    @property
    def rules(self) -> tuple[RuleSettings, ...]:
        """The rules asked, each with its own monitor and smoothing."""
        members = self.any or self.all or (self,)
        return tuple(
            member.model_copy(
                update={
                    "monitor": member.monitor or self.monitor,
                    "smoothing": self.smoothing if member.smoothing is None else member.smoothing,
                }
            )
            for member in members
        )


@dataclass(frozen=True)
class Reaction:
    """After `epoch` (from 1) the learning rate was reduced, for this reason."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Decision:
    """What follows from a history: whether to stop after its last epoch, why, and the epoch (from 1) of the best
    weights.

    `reactions` are the reductions of the learning rate so far. With `back` the last epoch has led to one: its weights
    give way to the best ones. `path` are the epochs (from 1) that led to the best weights.
    """

    stop: bool
    reason: str
    best_epoch: int
    reactions: tuple[Reaction, ...] = ()
    back: bool = False
    path: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Verdict:
    reason: str
    final: bool


def decide(settings: EarlyStoppingSettings, history: Sequence[Mapping[str, float]]) -> Decision:
    """The decision after the epochs in `history`, a function of it alone.

    The best epoch is the first with the best value as it was measured. `min_delta` and `smoothing` bear on stopping
    only: an epoch that is better by less still gives the best weights, but does not renew patience (Prechelt 1998 keeps
    the same distinction). After a reduction the rules see the epochs up to the best one and those that follow.

    Raises:
        JobError: a monitored metric is not among those recorded, or one that a rule cannot take.
    """
    monitored = Curve(settings.monitor, history, range(len(history)))
    path, answered = list(range(len(history))), 0
    reactions: list[Reaction] = []
    while True:
        verdicts = _verdicts(settings, history, path)
        turn = None
        if len(reactions) < settings.reductions:
            turn = next((i for i, v in zip(path, verdicts, strict=True) if v and not v.final and i >= answered), None)
        if turn is None:
            break
        reactions.append(Reaction(turn + 1, _reason(verdicts[path.index(turn)])))
        best = monitored.best_places[turn]
        path, answered = [i for i in path if i <= best or i > turn], turn + 1
    best = monitored.best_places[-1]
    back = bool(reactions) and answered == len(history)
    reason = "" if back else _reason(verdicts[-1])
    if reason and reactions:
        times = "once" if len(reactions) == 1 else f"{len(reactions)} times"
        reason += f", the learning rate reduced {times} before"
    way = tuple(i + 1 for i in path if i <= best)
    return Decision(bool(reason), reason, best + 1, tuple(reactions), back, way)


def _reason(verdict: _Verdict | None) -> str:
    return verdict.reason if verdict else ""


def _verdicts(
    settings: EarlyStoppingSettings, history: Sequence[Mapping[str, float]], path: Sequence[int]
) -> list[_Verdict | None]:
    """What the rules say after each epoch of the path, together."""
    rules = settings.rules
    said = []
    for rule in rules:
        assert rule.monitor is not None
        assert rule.smoothing is not None
        said.append(list(RULES[rule.rule].reasons(Curve(rule.monitor, history, path, rule.smoothing), rule)))
    verdicts: list[_Verdict | None] = []
    for i, reasons in zip(path, zip(*said, strict=True), strict=True):
        held = [(rule.rule, reason) for rule, reason in zip(rules, reasons, strict=True) if reason]
        if i < settings.warmup_epochs or not held or (settings.all and len(held) < len(rules)):
            verdicts.append(None)
            continue
        finals = [RULES[name].final for name, _ in held]
        final = all(finals) if settings.all else any(finals)
        names = " and ".join(name for name, _ in held)
        verdicts.append(_Verdict(f"{'; '.join(reason for _, reason in held)}: rule {names}, epoch {i + 1}", final))
    return verdicts


def unused_keys(settings: RuleSettings) -> tuple[str, ...]:
    """The keys that have no meaning beside the others."""
    used = {"monitor", "rule"}
    if not isinstance(settings, EarlyStoppingSettings):
        used |= RULES[settings.rule].keys.keys()
    elif settings.any or settings.all:
        used = {"monitor", *(key for key in ("any", "all") if getattr(settings, key))}
        used |= {"smoothing"} & {key for rule in settings.rules for key in RULES[rule.rule].keys}
    else:
        used |= RULES[settings.rule].keys.keys()
    if isinstance(settings, EarlyStoppingSettings) and any(rule.rule != "none" for rule in settings.rules):
        used |= {"warmup_epochs"}
        if not all(RULES[rule.rule].final for rule in settings.rules):
            used |= {"reductions", *(["factor"] if settings.reductions else [])}
    return tuple(key for key in type(settings).model_fields if key not in used)


def rule_problems(settings: EarlyStoppingSettings) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What does not fit together in the section: path, message, and the other paths that have a part in it.

    A key at its default says nothing, so that a section with everything written out is taken.
    """
    at = "early_stopping"
    if settings.any and settings.all:
        yield f"{at}.all", "cannot stand beside early_stopping.any: keep one of them", (f"{at}.any",)
        return
    yield from _problems_of(settings, at)
    name = "any" if settings.any else "all"
    for number, member in enumerate(settings.any or settings.all):
        place = f"{at}.{name}.{number}"
        if member.rule == "none":
            yield f"{place}.rule", "'none' is no rule to combine: remove it", ()
        else:
            yield from _problems_of(member, place)


def _problems_of(settings: RuleSettings, at: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    also: tuple[str, ...]
    combined = isinstance(settings, EarlyStoppingSettings) and (settings.any or settings.all)
    if combined:
        whose, also = (
            "beside early_stopping.any and all, whose rules have keys of their own",
            (f"{at}.any", f"{at}.all"),
        )
    else:
        keys = ", ".join(RULES[settings.rule].keys) or "none"
        whose, also = f"by rule {settings.rule!r}, whose keys are: {keys}", (f"{at}.rule",)
    for key in unused_keys(settings):
        if getattr(settings, key) == type(settings).model_fields[key].default:
            continue
        users = [name for name, spec in RULES.items() if key in spec.keys]
        if key == "factor":
            yield (
                f"{at}.factor",
                "is not used without early_stopping.reductions: set that too",
                (f"{at}.reductions", *also),
            )
        elif key in SECTION_KEYS:
            why = "never stops" if settings.rule == "none" else "only ends training"
            yield f"{at}.{key}", f"is not used by rule {settings.rule!r}, which {why}: remove it", also
        elif combined or not users:
            yield f"{at}.{key}", f"is not used {whose}: remove it", also
        else:
            yield f"{at}.{key}", f"is not used {whose}: remove it, or use rule {' or '.join(users)}", also
    for key, what in REQUIRED.items():
        if not combined and key in RULES[settings.rule].keys and getattr(settings, key) is None:
            yield f"{at}.{key}", f"is needed by rule {settings.rule!r}: give {what}", also


def monitors(settings: EarlyStoppingSettings) -> Iterator[tuple[str, str]]:
    """Dotted path and metric of every monitor."""
    yield "early_stopping.monitor", settings.monitor
    for name in ("any", "all"):
        for number, rule in enumerate(getattr(settings, name)):
            if rule.monitor is not None:
                yield f"early_stopping.{name}.{number}.monitor", rule.monitor
