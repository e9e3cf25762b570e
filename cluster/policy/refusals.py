"""Says of which kind a failed launch is, from what clouds and SkyPilot say.

Input: the texts of one failed launch.

The rule: words of quotas first, then of stock, then of credentials; else `other`. Quotas go first,
as their texts speak of capacity too, and credentials last, as a text may name them in passing.

Invariants:
  1. clouds_words_are_known: the codes that clouds document are of their kind, in any text.
  2. unknown_is_other: a text without such a word is `other`.
  3. line_tells_the_kind: the line that people are shown has the word that made the kind.

Source: error codes as documented by AWS (EC2 error codes), Google Cloud (Compute Engine,
troubleshooting VM creation), Azure (allocation failures, quota errors) and Lambda (Cloud API).
"""

import re

from cluster.policy.fleet import Refusal

_WORDS: tuple[tuple[Refusal, str], ...] = (
    (
        "quota",
        r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|QUOTA_EXCEEDED"
        r"|QuotaExceeded|quota[- ]exceeded|exceed\w* (the )?(approved |regional )?quota"
        r"|LIMIT_EXCEEDED"
        r"|OperationNotAllowed.*quota|SpotMaxPriceTooLow|no quota|quota of 0|quota is 0",
    ),
    (
        "stock",
        r"InsufficientInstanceCapacity|InsufficientHostCapacity|UnfulfillableCapacity"
        r"|ZONE_RESOURCE_POOL_EXHAUSTED|stockout|AllocationFailed|ZonalAllocationFailed"
        r"|OverconstrainedAllocationRequest|OverconstrainedZonalAllocationRequest|SkuNotAvailable"
        r"|insufficient[- ]capacity|not enough (capacity|resources)|capacity-not-available"
        r"|spot-instance-terminated|no room|NotEnoughResources|out of stock",
    ),
    (
        "credentials",
        r"UnauthorizedOperation|AuthFailure|InvalidClientTokenId|ExpiredToken|SignatureDoesNotMatch"
        r"|NoCredentialsError|NoCloudAccess|AuthorizationFailed|PERMISSION_DENIED|invalid_grant"
        r"|CloudUserIdentityError|InvalidAuthenticationToken|credentials? (are|is|have|were) "
        r"(missing|not|expired|invalid)|not authorized|global/invalid-api-key",
    ),
)

_REMEDIES: dict[Refusal, str] = {
    "stock": "other zones are tried meanwhile",
    "quota": "ask {cloud} for a higher quota; the region rests meanwhile, others are tried",
    "credentials": "`.venv-sky/bin/sky check {cloud}` says what is missing; then start this again",
    "other": "`.venv-sky/bin/sky logs --provision NODE` has all of it",
}


def classify_refusal(text: str) -> Refusal:
    """Return the kind of a failed launch."""
    for kind, words in _WORDS:
        if re.search(words, text, re.IGNORECASE | re.DOTALL):
            return kind
    return "other"


def choose_line(text: str) -> str:
    """Return the line of a text that says most: the one that tells the kind, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = dict(_WORDS).get(classify_refusal(text), "")
    telling = (line for line in lines if words and re.search(words, line, re.IGNORECASE))
    return next(telling, lines[0] if lines else "")


def remedy_of(refusal: Refusal, cloud: str) -> str:
    """Return what a person does about a refusal, in one line."""
    return _REMEDIES[refusal].format(cloud=cloud)
