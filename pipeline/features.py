"""Placeholder until the real module is written: overwrite this file."""


def kernel_chart(network):  # type: ignore
    return None


def response_chart(network, image):  # type: ignore
    return None


def maps_chart(network, image):  # type: ignore
    return None
