"""The layers of Keras as torch modules that take and give arrays laid out as Keras has them (channels last by default).

A picture is moved to channels first for a convolution and back: in channels-last memory both are views, without a copy.
"""
