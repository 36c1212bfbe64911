"""phases: what trains, for how long, at what rate."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken


class FromStage(Strict):
    from_: str = Field(
        alias="from",
        min_length=1,
        title="STAGE",
        examples=["layer4"],
        description="the first stage that trains; all stages after it train too",
    )


class LastStages(Strict):
    last: int = Field(ge=1, title="N", examples=[2], description="number of stages that train, counted from the head")


class LowRank(Strict):
    rank: int = Field(ge=1, title="R", examples=[8], description="of the two matrices whose product is added to a layer's weights")
    alpha: float | None = Field(None, gt=0, examples=[16], description="what is added is scaled by alpha / rank; by default by 1")


class Lora(Strict):
    lora: LowRank = Field(
        title="{rank: R}", description="low-rank adapters on all linear layers, at lr times backbone_lr; merged at the phase's end"
    )

    @property
    def kind(self) -> Literal["lora"]:
        return "lora"

    @property
    def settings(self) -> LowRank:
        return self.lora


class Dora(Strict):
    dora: LowRank = Field(title="{rank: R}", description="as lora, with a magnitude for each output that is learned apart (DoRA)")

    @property
    def kind(self) -> Literal["dora"]:
        return "dora"

    @property
    def settings(self) -> LowRank:
        return self.dora


Adapter = Lora | Dora
Train = Literal["head", "all", "norm", "bias"] | FromStage | LastStages | Lora | Dora
BatchNorm = Literal["frozen", "adapt"]
MasterPrecision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Those that leave the weights in 32 bits, so that one phase can hand them to another."""


class Phase(Strict):
    train: Train = Field(description="what trains; everything else is frozen: no gradients, eval mode")
    epochs: int = Field(ge=1, examples=[5], description="passes over the training split")
    lr: float = Field(gt=0, examples=[0.001], description="highest learning rate")
    batchnorm: Literal["auto", "frozen", "adapt"] = Field(
        "auto",
        examples=["frozen"],
        description="statistics of trained batch-norm layers: frozen, as the weights came, or adapted to those of each batch;"
        " auto freezes those of pretrained weights below 20,000 training images",
    )
    backbone_lr: float | None = Field(None, gt=0, le=1, examples=[0.1], description="the backbone's lr as a share of the head's")
    layer_decay: float | None = Field(None, gt=0, le=1, examples=[0.75], description="factor on lr for every stage further from the head")
    precision: MasterPrecision | None = Field(None, description="precision; by default trainer.precision")
    compile: bool = Field(False, description="torch.compile: about a minute before the first step, then faster steps")

    @property
    def adapter(self) -> Adapter | None:
        return self.train if isinstance(self.train, Lora | Dora) else None

    @model_validator(mode="after")
    def _rates_have_stages(self) -> Self:
        for key in ("backbone_lr", "layer_decay"):
            if self.train == "head" and getattr(self, key) is not None:
                problem = f"= {getattr(self, key)} does nothing: this phase trains only the head."
                raise rule_broken(key, "train", problem, "Remove it, or set train to all or {from: STAGE}.")
        if self.backbone_lr is not None and self.layer_decay is not None:
            problem = f"= {self.backbone_lr} and layer_decay = {self.layer_decay} both set the backbone's rates."
            raise rule_broken("backbone_lr", "layer_decay", problem, "Keep one of them.")
        return self


class SolvedPhase(Strict):
    """The linear head found by logistic regression on the frozen network's features: no epochs, and no learning rate to guess."""

    train: Train = Field(description="what is solved: only the head can be")
    solver: Literal["lbfgs"] = Field(description="instead of epochs and lr: solve to convergence, on training images without augmentation")
    weight_decay: float | None = Field(
        None,
        gt=0,
        examples=[0.1],
        description="times half the squared weights of standardised features; by default the one with the lowest validation loss",
    )

    @model_validator(mode="after")
    def _head_alone_is_solved(self) -> Self:
        if self.train != "head":
            problem = "can't be solved: only the head is one linear layer on features that stay as they are."
            raise rule_broken("train", "solver", problem, "Set it to head, or give epochs and lr in place of solver.")
        return self


def _kind_of_phase(value: Any) -> str:
    solved = "solver" in value if isinstance(value, Mapping) else isinstance(value, SolvedPhase)
    return "SolvedPhase" if solved else "Phase"


AnyPhase = Annotated[Annotated[Phase, Tag("Phase")] | Annotated[SolvedPhase, Tag("SolvedPhase")], Discriminator(_kind_of_phase)]
"""Tags are class names: faults are explained by them."""
