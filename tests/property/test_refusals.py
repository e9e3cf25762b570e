"""Invariants of cluster.policy.refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.fleet import Refusal
from cluster.policy.refusals import choose_line, classify_refusal, remedy_of

_KNOWN: tuple[tuple[Refusal, str], ...] = (
    ("stock", "An error occurred (InsufficientInstanceCapacity) when calling RunInstances"),
    ("stock", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"),
    ("stock", "Code: SkuNotAvailable The requested VM size is currently not available"),
    ("quota", "An error occurred (MaxSpotInstanceCountExceeded): Max spot instance count exceeded"),
    ("quota", "VcpuLimitExceeded: You have requested more vCPU capacity than your limit of 0"),
    ("quota", "Quota 'PREEMPTIBLE_NVIDIA_H100_GPUS' exceeded. QUOTA_EXCEEDED"),
    ("quota", "Operation could not be completed as it results in exceeding approved quota"),
    ("credentials", "An error occurred (UnauthorizedOperation) when calling RunInstances"),
    ("credentials", "AuthFailure: AWS was not able to validate the provided access credentials"),
)


@pytest.mark.parametrize(("kind", "text"), _KNOWN)
@given(st.text("abcdefg \n", max_size=40), st.text("abcdefg \n", max_size=40))
def test_clouds_words_are_known(kind: Refusal, text: str, before: str, after: str) -> None:
    assert classify_refusal(f"{before} {text} {after}") == kind


@pytest.mark.parametrize(("kind", "text"), _KNOWN)
@given(st.text("abcdefg \n", max_size=40), st.text("abcdefg \n", max_size=40))
def test_line_tells_the_kind(kind: Refusal, text: str, before: str, after: str) -> None:
    assert choose_line(f"{before}\n{text}\n{after}") == text
    assert choose_line(before) == next(
        (line.strip() for line in before.split("\n") if line.strip()), ""
    )


def test_line_names_the_credentials_that_skypilot_misses() -> None:
    said = "\n".join(
        [
            "ResourcesUnavailableError: Failed to provision all possible launchable resources.",
            "",
            "  AWS credentials are not set. Run the following commands:",
            "        $ aws configure",
        ]
    )
    assert choose_line(said) == "AWS credentials are not set. Run the following commands:"


@given(st.text("abcdefghij :\n", max_size=200))
def test_unknown_is_other(text: str) -> None:
    assert classify_refusal(text) == "other"


def test_remedy_names_the_cloud_and_the_command() -> None:
    assert "sky check aws" in remedy_of("credentials", "aws")
    assert "gcp" in remedy_of("quota", "gcp")
