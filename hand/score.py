"""How well contacts hold: the Ferrari-Canny epsilon of closed hands, vectorised."""

import functools

import numpy as np

from hand.closing import CONTACT, link_gaps
from hand.described import BENCHMARK

MIN_SCORE = 1.5  # grasps under it do not count
FRICTION, TORQUE_LENGTH = 0.8, 0.06  # Coulomb coefficient; m that make a torque comparable with a force
SCORE_PER_EPSILON = 1.5 / 0.035
DIRECTIONS = np.random.default_rng(0).standard_normal((256, 6))
DIRECTIONS = (DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)).astype(np.float32)


def contact_wrenches(points, normals, origin):
    """Friction cones (n, c, 3, 6) at contacts (n, c, 3): wrenches of unit normal forces, and of tangents x FRICTION."""
    helper = np.eye(3, dtype=np.float32)[np.abs(normals).argmin(-1)]
    first = np.cross(normals, helper)
    first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-9)
    forces = np.stack((normals, FRICTION * first, FRICTION * np.cross(normals, first)), 2)  # (n, c, 3, 3)
    arms = ((points - origin) / TORQUE_LENGTH)[:, :, None]
    return np.concatenate((forces, np.cross(arms, forces)), -1).astype(np.float32)


def support(wrenches, mask, u):
    """How far cones (n, c, 3, 6) reach along u (n, s, 6): (n, s, c), -9 where not in mask; its parts (n, s, c, 3)."""
    n, c = mask.shape
    parts = (u @ wrenches.reshape(n, c * 3, 6).transpose(0, 2, 1)).reshape(n, u.shape[1], c, 3)
    reach = parts[..., 0] + np.sqrt(parts[..., 1] ** 2 + parts[..., 2] ** 2)
    return np.where(mask[:, None], reach, np.float32(-9)), parts


def over_contacts(reach):
    """reach.max(-1), (n, s, c) -> (n, s): faster so, where the last dimension is short."""
    return functools.reduce(np.maximum, np.moveaxis(reach, -1, 0))


def epsilon(wrenches, mask, starts=8, rounds=28):
    """Ferrari-Canny L1 quality (n,): the least, over unit wrenches, of what the best contact can resist.

    The minimum of a support function, so no hull is built: an upper bound from fixed directions, where
    that is positive lowered by descent on a softened maximum that hardens. Negative: no force closure.
    """
    if not len(mask):
        return np.zeros(0, dtype=np.float32)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : max(1, mask.sum(1).max())]  # real contacts first
    mask, wrenches = np.take_along_axis(mask, order, 1), np.take_along_axis(wrenches, order[..., None, None], 1)
    coarse = over_contacts(support(wrenches, mask, np.broadcast_to(DIRECTIONS, (len(mask), *DIRECTIONS.shape)))[0])
    bound = coarse.min(1)
    promising = np.flatnonzero(bound > 0)
    u = DIRECTIONS[np.argpartition(coarse[promising], starts, axis=1)[:, :starts]]  # (n, s, 6)
    bound[promising] = np.minimum(bound[promising], descend(wrenches[promising], mask[promising], u, rounds))
    return bound


def descend(wrenches, mask, u, rounds):
    """The least support (n,) met on the way down from unit directions u (n, s, 6)."""
    best, (n, c) = np.full(len(u), np.inf, dtype=np.float32), mask.shape
    schedule = (np.geomspace(5, 200, rounds, dtype=np.float32), np.geomspace(0.8, 0.01, rounds, dtype=np.float32))
    for sharp, step in zip(*schedule):
        reach, parts = support(wrenches, mask, u)
        most = over_contacts(reach)
        best = np.minimum(best, most.min(-1))
        weight = np.exp(sharp * (reach - most[..., None]))
        weight /= weight.sum(-1, keepdims=True)
        slide = np.sqrt(parts[..., 1] ** 2 + parts[..., 2] ** 2 + np.float32(1e-9))
        parts[..., 0], parts[..., 1:] = 1, parts[..., 1:] / slide[..., None]
        slope = (parts * weight[..., None]).reshape(n, u.shape[1], 3 * c) @ wrenches.reshape(n, 3 * c, 6)
        slope -= (slope * u).sum(-1, keepdims=True) * u
        u = u - step * slope / np.maximum(np.linalg.norm(slope, axis=-1, keepdims=True), np.float32(1e-3))
        u /= np.linalg.norm(u, axis=-1, keepdims=True)
    return best


def score(centers, gaps, field, hand=BENCHMARK):
    """Scores (n,) float32 of closed hands: finger spheres (n, F, P, 3) m in the object's frame, gaps (n, F, P) m.

    A link nearer than CONTACT touches, where its nearest sphere points.
    """
    gap, nearest = link_gaps(gaps, hand)  # (n, F, L)
    fingers, shape = np.arange(len(hand.links))[:, None], (len(gaps), int(np.prod(gap.shape[1:])))
    radii = hand.fingers.radii.astype(np.float32)[fingers, nearest].reshape(shape)
    center = np.take_along_axis(centers, nearest[..., None], 2).reshape(*shape, 3)
    gap = gap.reshape(shape)
    mask = gap < CONTACT
    gap = np.where(mask, gap, np.float32(0))  # a finger may have fewer links than others
    inward = np.zeros_like(center)
    inward[mask] = field.direction(center[mask])
    contacts = center + (gap + radii)[..., None] * inward
    return (SCORE_PER_EPSILON * epsilon(contact_wrenches(contacts, inward, field.center), mask)).astype(np.float32)
