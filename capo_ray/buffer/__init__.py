"""The buffer room: the slots that bound how far rollouts run ahead of the learner."""

from capo_ray.buffer.slots import SlotBuffer, Taken, Ticket, TicketMisuse

__all__ = ["SlotBuffer", "Taken", "Ticket", "TicketMisuse"]
