"""Models of recurra.forecast."""

import torch

from bench_cases.case import Case, Variants, inference


def by_expansion(x: torch.Tensor) -> torch.Tensor:
    """ReGENN's adjacency by its definition: the batch once for each variable, kept where that one is positive."""
    variables = x.shape[-1]
    repeated = x[None].repeat(variables, 1, 1, 1)  # (variable j, sample, time, variable i)
    kept = repeated * (x > 0).movedim(-1, 0)[..., None].to(x.dtype)
    adjacency = kept.sum((1, 2)).T
    diagonal = (2 * adjacency.diagonal() - adjacency.sum(1)).clamp_min(0)
    return adjacency - torch.diag(adjacency.diagonal()) + torch.diag(diagonal)


def graph(variables: int, small: bool, device: str) -> Variants:
    from recurra.forecast.models.graph_evolution import co_occurrence

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 84, 8 if small else variables, generator=generator).sub(0.3).clamp_min(0).to(device)
    return {
        "by expansion": lambda: inference(lambda: by_expansion(x)),
        "one product": lambda: inference(lambda: co_occurrence(x)),
    }


CASES = {
    f"regenn graph {variables}": Case(
        "forecast", lambda small, device, variables=variables: graph(variables, small, device), 1e-5, 9, least=0.02
    )
    for variables in (31, 128)
}
