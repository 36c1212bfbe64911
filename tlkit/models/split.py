"""Cuts a classifier where its frozen part ends: images -> prefix -> activations -> suffix -> features."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import get_notrace_functions, get_notrace_modules  # type: ignore[attr-defined]  # timm exports without __all__
from torch import Tensor, fx, nn

from tlkit.models.adapters import is_adapted
from tlkit.models.classifier import Classifier

Activations = tuple[Tensor, ...]
"""What crosses the cut, each [B, ...]: one tensor nearly always, two where a skip connection runs past it."""


class CannotCut(Exception):
    """Says why: the phase runs the whole network then."""


@dataclass(frozen=True)
class Cut:
    """prefix: normalised images [B, C, H, W] -> Activations, constant while a phase trains. boundary: names the place, for people.

    suffix: Activations -> what the head takes. It holds the classifier's own layers, so that training it trains the classifier.
    code: what the prefix computes, as text.
    """

    prefix: nn.Module
    suffix: "Suffix"
    boundary: str
    code: str


def cut(classifier: Classifier, image: Tensor) -> Cut:
    """Cut before the first layer that trains or is in train mode, as `train_only` has set them; the classifier keeps its modes.

    image: [1, C, H, W], any image of the right size, to find out what crosses the cut.
    Raises CannotCut if the network can't be traced, nothing is frozen before what trains, or the halves don't give the whole.
    """
    if not any(parameter.requires_grad for parameter in classifier.backbone.parameters()):
        return Cut(_Alone(classifier), Suffix(nn.Identity(), nn.Identity()), "the features", repr(classifier.backbone))
    image = image.to(next(classifier.parameters()).device)
    live = {name for name, module in classifier.named_modules() if _is_live(module)}
    training = classifier.training
    try:
        in_training = _halves(classifier, live, image)
        in_evaluation = _halves(classifier.eval(), live, image)
        if in_training.boundary != in_evaluation.boundary:
            raise CannotCut("it computes different layers in training and in evaluation")
        suffix = Suffix(in_training.suffix, in_evaluation.suffix)
        found = Cut(in_evaluation.prefix, suffix, in_evaluation.boundary, str(in_evaluation.prefix.graph))
        _check(classifier, found, image)
    finally:
        classifier.train(training)
    return found


class Suffix(nn.Module):
    """Layers whose way depends on the mode in Python code are traced in both modes; weights are shared."""

    def __init__(self, in_training: nn.Module, in_evaluation: nn.Module) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = in_training, in_evaluation

    def forward(self, *activations: Tensor) -> Tensor:
        features: Tensor = (self.in_training if self.training else self.in_evaluation)(*activations)
        return features

    def train(self, mode: bool = True) -> "Suffix":
        """Choose the traced way; the modes of the layers are set by the classifier."""
        self.training = mode
        return self


class _Features(nn.Module):
    """What is traced: all that comes before the head."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


class _Alone(nn.Module):
    """All of a frozen backbone: nothing has to be traced."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.backbone = classifier.backbone
        self._features = [classifier.features]  # in a list, so that the head is no part of this

    def forward(self, images: Tensor) -> Activations:
        return (self._features[0](images),)


class _Tracer(fx.Tracer):
    """Goes into modules with children and no others, so that a layer's mode stays its own: timm's DropPath looks at it in Python."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))  # type: ignore[no-untyped-call]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # An adapter's way depends on its inputs' dtype, which a trace doesn't know.
        return is_adapted(m) or not any(True for _ in m.children()) or isinstance(m, (*get_notrace_modules(), nn.MultiheadAttention))  # type: ignore[no-untyped-call]


def _is_live(module: nn.Module) -> bool:
    """Check whether a layer's output can change from one step to the next; for a layer with children, whether its own parameters train."""
    trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    return trains or (module.training and not any(True for _ in module.children()))


class _Halves(NamedTuple):
    prefix: fx.GraphModule
    suffix: fx.GraphModule
    boundary: str


def _halves(classifier: Classifier, live: set[str], image: Tensor) -> _Halves:
    features = _Features(classifier)
    try:
        graph = _Tracer().trace(features)
    except Exception as error:  # whatever a model's own code does with a traced value
        raise CannotCut(f"torch.fx can't trace it ({next(iter(str(error).splitlines()), type(error).__name__)})") from error
    late = _downstream(graph, live, classifier)
    crossing, late = _crossing(features, graph, late, image)
    if any(node.op == "placeholder" for node in crossing):
        raise CannotCut("no frozen layer comes before the layers that train")
    prefix, suffix = _prefix(graph, crossing), _suffix(graph, crossing, late)
    boundary = ", ".join(node.name.removeprefix("classifier_backbone_") for node in crossing)
    return _Halves(fx.GraphModule(features, prefix), fx.GraphModule(features, suffix), boundary)


def _downstream(graph: fx.Graph, live: set[str], classifier: Classifier) -> set[fx.Node]:
    """Return the nodes that a live layer or parameter reaches."""
    late: set[fx.Node] = set()
    for node in graph.nodes:
        target = str(node.target).removeprefix("classifier.")
        if node.op == "call_module":
            starts = any(name == target or name.startswith(f"{target}.") for name in live)
        elif node.op == "get_attr":
            starts = any(name == target and parameter.requires_grad for name, parameter in classifier.named_parameters())
        else:
            starts = False
        if starts or any(source in late for source in node.all_input_nodes):
            late.add(node)
    return late


def _per_image(features: nn.Module, graph: fx.Graph, image: Tensor) -> set[fx.Node]:
    """Return the nodes whose values are tensors [B, ...]: sizes and tables stay the same when there are more images."""
    of_two, of_three = (_first_dimensions(features, graph, image.repeat(count, 1, 1, 1)) for count in (2, 3))
    return {node for node in graph.nodes if (of_two[node], of_three[node]) == (2, 3)}


def _first_dimensions(features: nn.Module, graph: fx.Graph, images: Tensor) -> dict[fx.Node, int]:
    """Return the first dimension of every node's value, 0 if it is no tensor; in eval mode, so that no statistics move."""
    found: dict[fx.Node, int] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            found[n] = len(value) if isinstance(value, Tensor) and value.ndim else 0
            return value

    was = {module: module.training for module in features.modules()}
    try:
        features.eval()
        with torch.inference_mode():
            Recorder(fx.GraphModule(features, graph)).run(images)
    finally:
        for module, training in was.items():
            module.training = training
    return found


def _crossing(features: nn.Module, graph: fx.Graph, late: set[fx.Node], image: Tensor) -> tuple[list[fx.Node], set[fx.Node]]:
    """Return the nodes whose values cross the cut, and the late nodes with those that are computed again rather than cached.

    Sizes and tables can't be cached by image. Pooling and the like of another value that crosses costs less than caching it.
    """
    by_image = _per_image(features, graph, image)
    (output,) = (node for node in graph.nodes if node.op == "output")
    late = late | {output}
    while True:
        crossing = [node for node in graph.nodes if node not in late and any(user in late for user in node.users)]
        again = {node for node in crossing if node.op != "placeholder" and (node not in by_image or _follows(node, crossing, features))}
        if not again:
            return crossing, late
        late |= again


def _follows(node: fx.Node, crossing: Collection[fx.Node], features: nn.Module) -> bool:
    """Check whether a node is a function without weights of values that cross anyway."""
    if node.op == "call_module" and any(True for _ in features.get_submodule(str(node.target)).state_dict()):
        return False
    return bool(node.all_input_nodes) and all(source in crossing for source in node.all_input_nodes)


def _prefix(graph: fx.Graph, crossing: Iterable[fx.Node]) -> fx.Graph:
    half = fx.Graph()
    needed = _upstream(crossing)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = half.node_copy(node, lambda source: copies[source])
    half.output(tuple(copies[node] for node in crossing))
    return half


def _upstream(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _suffix(graph: fx.Graph, crossing: Iterable[fx.Node], late: set[fx.Node]) -> fx.Graph:
    half = fx.Graph()
    copies = {node: half.placeholder(node.name) for node in crossing}
    for node in graph.nodes:
        if node in late:
            copies[node] = half.node_copy(node, lambda source: copies[source])
    half.lint()
    return half


@torch.inference_mode()
def _check(classifier: Classifier, found: Cut, image: Tensor) -> None:
    """Check in eval mode that both agree bit for bit or nearly."""
    images = torch.cat([image, image.flip(-1)])
    found.suffix.eval()
    whole, halves = classifier.features(images), found.suffix(*found.prefix(images))
    if not torch.allclose(whole, halves, rtol=1e-5, atol=1e-6):
        raise CannotCut(f"its halves differ from the whole by {float((whole - halves).abs().max()):.1e}")
