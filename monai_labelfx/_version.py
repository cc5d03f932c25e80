# SPDX-License-Identifier: Apache-2.0
"""The version, as a literal in a file that imports nothing, so that a build needs no torch."""

__version__ = "0.1.0"
