"""Recurrent actor-critic: a rollout step by step, training on the whole sequence with resets.

    python lstm/examples/rollout.py
    python lstm/examples/rollout.py --updates 2

Episodes end in the middle of a rollout, at different steps in each environment. `resets` says
where, so that one call goes over all of it and no state passes from one episode to the next. While
it acts, the policy takes one step at a time with the state it carries, without gradients: that is
one launch a layer.

One should see that both ways give the same logits, and a mean reward that rises from 0, which is
guessing, towards 1.
"""

import argparse

import torch
from torch import nn

from lstm import LSTM

STEPS, ENVS = 16, 64


class Corridors:
    """Corridors with a junction at the end, where to turn is shown at the entrance alone.

    Observation: the sign at the entrance, -1 or 1, else 0; and 1 at the junction, else 0. At the
    junction action 0 or 1 gives a reward of 1 if it is the sign's, else -1, and ends the episode.
    """

    def __init__(self, count, device):
        self.sign, self.left = torch.zeros(2, count, device=device)
        self.enter(torch.ones(count, dtype=torch.bool, device=device))

    def enter(self, which):
        """New episodes, of 2 to 6 steps."""
        sign = torch.randint(2, self.sign.shape).to(self.sign) * 2 - 1
        left = torch.randint(1, 6, self.left.shape).to(self.left)
        self.sign, self.left = (
            torch.where(which, new, old) for new, old in ((sign, self.sign), (left, self.left))
        )
        self.begins = which

    def observe(self):
        return torch.stack((self.sign * self.begins, (self.left == 0).float()), dim=1)

    def act(self, action):
        """Returns: rewards, and where an episode has ended, so that the next observation is of a
        new one.
        """
        done = self.left == 0
        reward = torch.where(done, self.sign * (2 * action - 1), torch.zeros_like(self.sign))
        self.left = self.left - 1
        self.enter(done)
        return reward, done


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(2, 32)
        self.actor, self.critic = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, observations, state, begins):
        """Shapes: observations (T, B, 2); begins (T, B), where an episode does; logits (T, B, 2);
        values (T, B).
        """
        output, state = self.lstm(observations, state, resets=begins)
        return self.actor(output), self.critic(output).squeeze(2), state


@torch.no_grad()
def rollout(model, corridors, state, begins):
    """STEPS steps of all environments, each a call with a sequence of one.

    Returns: observations, begins, actions, rewards, dones and logits, each (T, B, ...); then the
        state and begins of the step after.
    """
    steps = []
    for _ in range(STEPS):
        observation = corridors.observe()
        logits, _, state = model(observation[None], state, begins[None])
        action = torch.distributions.Categorical(logits=logits[0]).sample()
        reward, done = corridors.act(action)
        steps.append((observation, begins, action, reward, done, logits[0]))
        # The flag belongs to the first step of the new episode, not to the last of the old.
        begins = done
    return [torch.stack(x) for x in zip(*steps, strict=True)], state, begins


def advantage_actor_critic(logits, values, actions, rewards, dones):
    """The loss of a rollout. What goes on after it is worth what its last value says."""
    returns, following = [], values[-1].detach()
    for reward, done in zip(rewards.flip(0), dones.flip(0), strict=True):
        following = reward + following * ~done
        returns.append(following)
    returns = torch.stack(returns).flip(0)
    policy = torch.distributions.Categorical(logits=logits)
    gain = policy.log_prob(actions) * (returns - values.detach()) + 0.01 * policy.entropy()
    return (0.5 * (returns - values).square() - gain).mean()


def main(arguments=None):
    """Train and print. Returns: of each update the mean reward of an episode, and how far the
    logits of the steps are from those of the sequence.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=100)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corridors, model = Corridors(ENVS, device), ActorCritic().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    begins, history = corridors.begins, []
    state = tuple(torch.zeros(1, ENVS, 32, device=device) for _ in range(2))
    for update in range(1, args.updates + 1):
        before = state
        steps, state, begins = rollout(model, corridors, before, begins)
        observations, resets, actions, rewards, dones, acted = steps
        # The same steps again, with gradients, in one call. The state before them is a constant.
        logits, values, _ = model(observations, before, resets)
        optimizer.zero_grad()
        advantage_actor_critic(logits, values, actions, rewards, dones).backward()
        optimizer.step()

        reward = rewards.sum() / dones.sum()
        history.append((reward.item(), (logits - acted).abs().max().item()))
        if update % 10 == 0 or update in (1, args.updates):
            reward, apart = history[-1]
            print(f"update {update}: reward {reward:.2f}, logits at most {apart:.0e} apart")
    return history


if __name__ == "__main__":
    main()
