"""Decides whether a request whose engine died goes on, and whether it does so alone.

Inputs: how many engines died under a request, in a row and in all; the configured most.

The rule: a request strikes out when `max_strikes` engines in a row died under it and none of them
gave it a token, or `max_losses` in all. An engine that died before it had accepted the request was
dead already, or as good as: that is a loss and no strike. Before its last try it is a suspect:
while it is on probation, until its engine has given it a token, that engine takes nobody else. So
what kills engines takes down `max_strikes` of them at most, and the last one alone, and a bystander
is cleared by its first token.

Invariants (each a property test of that name):

1. strikes_out_in_time: nothing goes on after `max_strikes` deaths in a row or `max_losses` in all.
2. bystander_goes_on: a request that gets a token between deaths goes on up to `max_losses`.
3. last_try_is_alone: whatever strikes out in a row was a suspect before.
4. absent_is_no_suspect: deaths of engines that had not accepted it are no strikes, however many.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Record:
    """What has befallen one request."""

    strikes: int = 0
    """Engines that died under it in a row and gave it no token."""
    losses: int = 0
    """Engines that died when it was theirs, whether they had taken it or not."""

    def with_death(self, *, was_there: bool = True) -> "Record":
        """Its engine has died. The first one counts although it may have given tokens.

        Args:
            was_there: Whether that engine had accepted it.
        """
        return Record(self.strikes + was_there, self.losses + 1)

    def with_token(self) -> "Record":
        """Its engine has given it a token."""
        return self if not self.strikes else replace(self, strikes=0)


def may_go_on(record: Record, max_strikes: int, max_losses: int) -> bool:
    """Whether a request that lost its engine is given to another one."""
    return record.strikes < max_strikes and record.losses < max_losses


def is_suspect(strikes: int, max_strikes: int) -> bool:
    """Whether this is its last try, to be made alone."""
    return strikes > 0 and strikes >= max_strikes - 1
