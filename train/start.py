"""What a training starts with: a network, random or with the weights of a run, and its ModelSpec."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..errors import TrainingError
from ..spec import Answers, ModelSpec
from .aware import make_aware
from .bundle import Bundle, read_bundle
from .fit_options import TrainOptions
from .networks import build_network, check_network, describe_network

__all__ = ["first_network"]


def first_network(options: TrainOptions, focal: float | None) -> tuple[nn.Module, ModelSpec, Bundle | None]:
    """The network to train, its ModelSpec, and the run that its weights are from.

    Args:
        options: of the training.
        focal: see `ModelSpec.focal`. The data decide the scale that the network learns, also with weights of a run for
            another camera, or for an unknown one.

    Raises:
        SpecError: the network does not accept a size of the training, or does not return depth, see `check_network`.
        TrainingError: the run with the weights is of another network, or does not answer as it is to be trained.
        UserError, BundleError: see `build_network`, `read_bundle`.
    """
    network, init = build_network(options.network), None
    answers: Answers | None = options.answers
    output = options.output
    if options.init is not None:
        init = read_bundle(options.init)
        if init.spec.network != options.network:
            raise TrainingError(f"{options.init} is a run of {init.spec.network}, not of {options.network}")
        if not init.spec.is_metric:
            raise TrainingError(
                f"{options.init} answers {init.spec.answers} depth, and training needs metres or a share of a range; "
                "turn it into metres in the network's forward"
            )
        if answers not in {None, init.spec.answers}:
            raise TrainingError(f"{options.init} answers {init.spec.answers}, not {answers}; leave --answers out")
        network.load_state_dict(init.network.state_dict())
        answers, output = init.spec.answers, output or init.spec.network_output
    if options.recipe.aware:
        make_aware(network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = describe_network(
        options.network, network, options.size, focal=focal, answers=answers or "share", output=output
    )
    if init is not None:
        spec = replace(spec, preprocessing=init.spec.preprocessing, depth_range=init.spec.depth_range)
    for stage in options.recipe.stages:
        check_network(network, stage.size(options.size), spec.network_output)
    if options.compiled:
        network.compile()
    return network, spec, init
