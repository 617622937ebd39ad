"""Predict the response of cells to a perturbation.

A method is one class of :mod:`vxpress.bridge.ask.perturbation.methods`, registered there under its name.
"""
