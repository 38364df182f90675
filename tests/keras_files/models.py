"""Keras models that the fixtures are made of: each supported layer alone, and the shapes of known architectures, with few weights.

`K` is keras (any backend) or tf_keras. This file is imported where TensorFlow or Keras is installed, not by medray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Make = Callable[[], Any]


def layers(K: Any, two: bool) -> dict[str, Make]:
    """Models of one layer, by name. `two`: of Keras 2."""
    L = K.layers
    line, picture, volume = (9, 3), (6, 5, 3), (5, 4, 5, 2)

    def one(layer: Any, shape: tuple[int, ...] = picture) -> Make:
        return lambda: K.Sequential([K.Input(shape), layer()])

    def many(layer: Any, *shapes: tuple[int, ...]) -> Make:
        def make() -> Any:
            inputs = [K.Input(shape, name=f"input_{i}") for i, shape in enumerate(shapes)]
            return K.Model(inputs, layer()(inputs))

        return make

    made: dict[str, Make] = {
        "conv1d": one(lambda: L.Conv1D(4, 3, strides=2, padding="same", activation="relu"), line),
        "conv1d_even_same": one(lambda: L.Conv1D(4, 4, padding="same"), line),
        "conv1d_causal": one(lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2, use_bias=False), line),
        "conv2d": one(lambda: L.Conv2D(4, (3, 2), activation="elu")),
        "conv2d_same_strides": one(lambda: L.Conv2D(4, 3, strides=2, padding="same")),
        "conv2d_same_uneven": one(lambda: L.Conv2D(4, (4, 3), strides=(3, 2), padding="same", activation="softmax")),
        "conv2d_dilation": one(lambda: L.Conv2D(4, 2, dilation_rate=(2, 1), padding="same")),
        "conv2d_groups": one(lambda: L.Conv2D(6, 3, groups=3, padding="same")),
        "conv3d": one(lambda: L.Conv3D(3, (2, 3, 2), strides=(2, 1, 2), padding="same"), volume),
        "depthwise1d": one(lambda: L.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2), line),
        "depthwise2d": one(
            lambda: L.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, activation="relu")
        ),
        "separable1d": one(lambda: L.SeparableConv1D(4, 3, padding="same", depth_multiplier=2), line),
        "separable2d": one(lambda: L.SeparableConv2D(4, (3, 2), strides=2, padding="same", activation="tanh")),
        "maxpool1d": one(lambda: L.MaxPooling1D(3, 2, padding="same"), line),
        "maxpool2d": one(lambda: L.MaxPooling2D((3, 2), (2, 2), padding="same")),
        "maxpool2d_default": one(lambda: L.MaxPooling2D()),
        "maxpool3d": one(lambda: L.MaxPooling3D(2, padding="same"), volume),
        "avgpool1d": one(lambda: L.AveragePooling1D(4, 3, padding="same"), line),
        "avgpool2d": one(lambda: L.AveragePooling2D((3, 2), (2, 2), padding="same")),
        "avgpool3d": one(lambda: L.AveragePooling3D(2, padding="same"), volume),
        "globalmax1d": one(lambda: L.GlobalMaxPooling1D(), line),
        "globalavg1d": one(lambda: L.GlobalAveragePooling1D(), line),
        "globalmax2d": one(lambda: L.GlobalMaxPooling2D(keepdims=True)),
        "globalavg2d": one(lambda: L.GlobalAveragePooling2D()),
        "globalmax3d": one(lambda: L.GlobalMaxPooling3D(), volume),
        "globalavg3d": one(lambda: L.GlobalAveragePooling3D(), volume),
        "dense": one(lambda: L.Dense(5, activation="sigmoid"), (7,)),
        "dense_of_a_line": one(lambda: L.Dense(5, use_bias=False), line),
        "batchnorm": one(lambda: L.BatchNormalization(epsilon=1e-2, momentum=0.9)),
        "batchnorm_axis": one(lambda: L.BatchNormalization(axis=1, scale=False)),
        "batchnorm_flat": one(lambda: L.BatchNormalization(center=False), (7,)),
        "layernorm": one(lambda: L.LayerNormalization(), line),
        "layernorm_plain": one(lambda: L.LayerNormalization(center=False, scale=False, epsilon=1e-5), (7,)),
        "dropout": one(lambda: L.Dropout(0.5), (7,)),
        "spatialdropout1d": one(lambda: L.SpatialDropout1D(0.5), line),
        "spatialdropout2d": one(lambda: L.SpatialDropout2D(0.5)),
        "spatialdropout3d": one(lambda: L.SpatialDropout3D(0.5), volume),
        "flatten": one(lambda: L.Flatten()),
        "reshape": one(lambda: L.Reshape((-1, 6))),
        "permute": one(lambda: L.Permute((3, 1, 2))),
        "repeatvector": one(lambda: L.RepeatVector(3), (7,)),
        "zeropadding1d": one(lambda: L.ZeroPadding1D((1, 2)), line),
        "zeropadding2d": one(lambda: L.ZeroPadding2D(((0, 1), (2, 1)))),
        "zeropadding3d": one(lambda: L.ZeroPadding3D((1, 0, 1)), (2, 2, 2, 2)),
        "upsampling1d": one(lambda: L.UpSampling1D(2), line),
        "upsampling2d": one(lambda: L.UpSampling2D((2, 3)), (3, 2, 2)),
        "upsampling2d_bilinear": one(lambda: L.UpSampling2D(2, interpolation="bilinear"), (4, 3, 2)),
        "upsampling3d": one(lambda: L.UpSampling3D((1, 2, 2)), (2, 2, 2, 2)),
        "embedding": lambda: K.Sequential([K.Input((6,), dtype="int32"), L.Embedding(11, 3)]),
        "simplernn": one(lambda: L.SimpleRNN(4), line),
        "simplernn_relu": one(lambda: L.SimpleRNN(4, activation="relu", use_bias=False, return_sequences=True), line),
        "gru": one(lambda: L.GRU(4), line),
        "gru_steps_backwards": one(lambda: L.GRU(4, return_sequences=True, go_backwards=True), line),
        "gru_reset_before": one(lambda: L.GRU(4, reset_after=False), line),
        "gru_reset_before_no_bias": one(lambda: L.GRU(4, reset_after=False, use_bias=False), line),
        "gru_other_activations": one(
            lambda: L.GRU(4, activation="relu", recurrent_activation="hard_sigmoid", return_sequences=True), line
        ),
        "lstm": one(lambda: L.LSTM(4), line),
        "lstm_steps": one(lambda: L.LSTM(4, return_sequences=True, use_bias=False), line),
        "lstm_hard_sigmoid": one(lambda: L.LSTM(4, recurrent_activation="hard_sigmoid"), line),
        "bidirectional_concat": one(lambda: L.Bidirectional(L.LSTM(3, return_sequences=True)), line),
        "bidirectional_sum": one(lambda: L.Bidirectional(L.GRU(3), merge_mode="sum"), line),
        "bidirectional_mul": one(lambda: L.Bidirectional(L.LSTM(3), merge_mode="mul"), line),
        "bidirectional_ave": one(
            lambda: L.Bidirectional(
                L.SimpleRNN(3, return_sequences=True),
                merge_mode="ave",
                backward_layer=L.GRU(3, return_sequences=True, go_backwards=True),
            ),
            line,
        ),
        "timedistributed_dense": one(lambda: L.TimeDistributed(L.Dense(4, activation="tanh")), line),
        "timedistributed_conv": one(lambda: L.TimeDistributed(L.Conv2D(2, 3, padding="same")), (3, 4, 4, 2)),
        "add": many(lambda: L.Add(), (4, 3), (4, 3), (4, 3)),
        "subtract": many(lambda: L.Subtract(), (4, 3), (4, 3)),
        "multiply": many(lambda: L.Multiply(), (4, 4, 3), (1, 1, 3)),
        "average": many(lambda: L.Average(), (4, 3), (4, 3), (4, 3)),
        "maximum": many(lambda: L.Maximum(), (4, 3), (4, 3)),
        "minimum": many(lambda: L.Minimum(), (4, 3), (4, 3)),
        "concatenate": many(lambda: L.Concatenate(axis=1), (4, 3), (2, 3)),
        "relu_layer": one(lambda: L.ReLU(max_value=0.8, negative_slope=0.1, threshold=0.2), (7,)),
        "relu_layer_max": one(lambda: L.ReLU(max_value=0.5), (7,)),
        "relu_layer_threshold": one(lambda: L.ReLU(threshold=0.3), (7,)),
        "leakyrelu_layer": one(lambda: L.LeakyReLU(), (7,)),
        "elu_layer": one(lambda: L.ELU(alpha=0.7), (7,)),
        "softmax_layer": one(lambda: L.Softmax(axis=1), (4, 3)),
        "rescaling": one(lambda: L.Rescaling(1 / 255, offset=-0.5)),
        "normalization": one(lambda: L.Normalization(), (4, 3)),
        "normalization_all": one(lambda: L.Normalization(axis=None), (7,)),
        "normalization_given": one(lambda: L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25]), (4, 3)),
    }

    def codes(*layers: Any, mask_zero: bool = True) -> Make:
        return lambda: K.Sequential(
            [K.Input((6,), dtype="int32"), L.Embedding(11, 3, mask_zero=mask_zero), *(each() for each in layers)]
        )

    def masked_steps() -> Any:
        steps = K.Input((6, 3))
        x = L.Masking(0.0)(L.Dense(3, activation="relu")(steps))
        x = L.Bidirectional(L.GRU(4, return_sequences=True))(x)
        x = L.LayerNormalization()(L.Activation("tanh")(L.Dense(3)(x)))
        last, mean = L.LSTM(2, return_sequences=False)(x), L.GlobalAveragePooling1D(keepdims=True)(x)
        return K.Model(steps, L.Concatenate()([last, L.Flatten()(mean)]))

    def shared_dense() -> Any:
        inputs = [K.Input((5,), name=f"input_{i}") for i in range(3)]
        shared, last = L.Dense(4, activation="tanh"), L.Dense(2)
        a, b, c = (shared(each) for each in inputs)
        return K.Model(inputs, L.Concatenate()([last(a), last(L.Subtract()([b, c])), L.Dense(3)(c)]))

    def shared_in_turn() -> Any:
        steps = K.Input((6, 3))
        lstm, norm = L.LSTM(3, return_sequences=True), L.BatchNormalization()
        return K.Model(steps, L.Dense(2)(L.Flatten()(norm(lstm(norm(lstm(steps)))))))

    def shared_model() -> Any:
        """Two pictures by one network within the network, and that by one more."""
        inner = K.Input((6, 5, 3))
        body = K.Model(inner, L.GlobalAveragePooling2D()(L.Conv2D(4, 2, activation="relu")(inner)), name="body")
        head = K.Sequential([K.Input((4,)), L.Dense(3, activation="tanh"), L.Dense(2)], name="head")
        one, two = K.Input((6, 5, 3), name="input_0"), K.Input((6, 5, 3), name="input_1")
        a, b = body(one), body(two)
        return K.Model([one, two], L.Concatenate()([head(L.Subtract()([a, b])), head(a)]))

    made |= {"shared_dense": shared_dense, "shared_in_turn": shared_in_turn, "shared_model": shared_model}
    made |= {
        "masked_lstm": codes(lambda: L.LSTM(4)),
        "masked_lstm_steps": codes(lambda: L.LSTM(4, return_sequences=True), lambda: L.Dense(2)),
        "masked_lstm_twice": codes(lambda: L.LSTM(4, return_sequences=True), lambda: L.Dropout(0.3), lambda: L.LSTM(3)),
        "masked_gru_backwards": codes(lambda: L.GRU(4, go_backwards=True)),
        "masked_gru_backwards_twice": codes(
            lambda: L.GRU(4, go_backwards=True, return_sequences=True), lambda: L.GRU(3)
        ),
        "masked_gru_reset_before": codes(lambda: L.GRU(4, reset_after=False, return_sequences=True)),
        "masked_simplernn": codes(lambda: L.SimpleRNN(4, return_sequences=True)),
        "masked_zero_output": codes(lambda: L.LSTM(4, return_sequences=True, zero_output_for_mask=True)),
        "masked_zero_last": codes(lambda: L.GRU(4, zero_output_for_mask=True)),
        "masked_bidirectional": codes(lambda: L.Bidirectional(L.LSTM(3, return_sequences=True))),
        "masked_bidirectional_last": codes(lambda: L.Bidirectional(L.GRU(3), merge_mode="ave")),
        "masked_dense": codes(lambda: L.Dense(4, activation="relu"), lambda: L.LSTM(3)),
        "masked_mean": codes(lambda: L.GlobalAveragePooling1D()),
        "masked_steps": masked_steps,
    }
    if not two:  # Keras 2 builds no such model
        made |= {
            "masked_max": codes(lambda: L.GlobalMaxPooling1D()),
            "masked_flatten": codes(lambda: L.Flatten(), lambda: L.Dense(2)),
            "masked_conv": codes(lambda: L.Conv1D(3, 2), lambda: L.GlobalAveragePooling1D()),
        }
    names = ["relu", "elu", "selu", "gelu", "sigmoid", "tanh", "softmax", "softplus", "softsign", "swish", "silu"]
    names += ["hard_sigmoid", "exponential", "linear", "mish"] + ([] if two else ["relu6", "leaky_relu", "hard_silu"])
    made |= {f"activation_{name}": one(lambda name=name: L.Activation(name), (7,)) for name in names}
    made["dense_leaky"] = one(lambda: L.Dense(5, activation=L.LeakyReLU()), (7,))
    return made


def channels_first(K: Any) -> dict[str, Make]:
    """Models of one layer with channels before the positions, which TensorFlow does not compute on a CPU."""
    L = K.layers
    first = {"data_format": "channels_first"}
    line, picture, volume = (3, 9), (3, 6, 5), (2, 4, 4, 3)

    def one(layer: Any, shape: tuple[int, ...] = picture) -> Make:
        return lambda: K.Sequential([K.Input(shape), layer()])

    return {
        "first_conv1d": one(lambda: L.Conv1D(4, 3, strides=2, padding="same", **first), line),
        "first_conv2d": one(lambda: L.Conv2D(4, (3, 2), strides=2, padding="same", activation="relu", **first)),
        "first_conv3d": one(lambda: L.Conv3D(3, 2, padding="same", **first), volume),
        "first_depthwise2d": one(lambda: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", **first)),
        "first_separable2d": one(lambda: L.SeparableConv2D(4, 3, **first)),
        "first_maxpool2d": one(lambda: L.MaxPooling2D((3, 2), (2, 2), padding="same", **first)),
        "first_avgpool2d": one(lambda: L.AveragePooling2D(2, **first)),
        "first_globalavg2d": one(lambda: L.GlobalAveragePooling2D(keepdims=True, **first)),
        "first_batchnorm": one(lambda: L.BatchNormalization(axis=1)),
        "first_flatten": one(lambda: L.Flatten(**first)),
        "first_zeropadding2d": one(lambda: L.ZeroPadding2D(((0, 1), (2, 1)), **first)),
        "first_upsampling2d": one(lambda: L.UpSampling2D((2, 1), **first)),
        "first_network": lambda: K.Sequential(
            [
                K.Input((1, 16, 16)),
                L.Conv2D(8, 3, activation="relu", **first),
                L.MaxPooling2D(2, **first),
                L.BatchNormalization(axis=1),
                L.Flatten(**first),
                L.Dense(3, activation="softmax"),
            ]
        ),
    }


def architectures(K: Any) -> dict[str, Make]:
    """Shapes of known networks, by name, with a few filters each."""
    L = K.layers

    def conv_norm(x: Any, filters: int, size: int, strides: int = 1, activation: str = "relu") -> Any:
        x = L.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
        return L.Activation(activation)(L.BatchNormalization()(x))

    def lenet() -> Any:
        return K.Sequential(
            [
                K.Input((28, 28, 1)),
                L.Conv2D(6, 5, padding="same", activation="tanh"),
                L.AveragePooling2D(2),
                L.Conv2D(8, 5, activation="tanh"),
                L.AveragePooling2D(2),
                L.Flatten(),
                L.Dense(12, activation="tanh"),
                L.Dense(10, activation="softmax"),
            ]
        )

    def vgg() -> Any:
        blocks: list[Any] = [K.Input((32, 32, 3))]
        for filters, count in ((4, 2), (6, 2), (8, 3)):
            blocks += [L.Conv2D(filters, 3, padding="same", activation="relu") for _ in range(count)]
            blocks.append(L.MaxPooling2D(2, 2))
        return K.Sequential(
            [*blocks, L.Flatten(), L.Dense(16, activation="relu"), L.Dropout(0.5), L.Dense(5, activation="softmax")]
        )

    def resnet() -> Any:
        pixels = K.Input((32, 32, 3), name="pixels")
        x = L.ZeroPadding2D(3)(pixels)
        x = L.Conv2D(8, 7, strides=2)(x)
        x = L.ReLU()(L.BatchNormalization(epsilon=1.001e-5)(x))
        x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))
        for filters, strides in ((8, 1), (12, 2)):
            short = L.BatchNormalization()(L.Conv2D(filters, 1, strides=strides)(x))
            y = conv_norm(x, filters // 2, 1, strides)
            y = conv_norm(y, filters // 2, 3)
            y = L.BatchNormalization()(L.Conv2D(filters, 1)(y))
            x = L.Activation("relu")(L.Add()([short, y]))
        return K.Model(pixels, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))

    def unet_encoder() -> Any:
        pixels = K.Input((32, 32, 1))
        x, pooled = pixels, []
        for filters in (4, 6, 8):
            x = L.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
            x = L.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
            pooled.append(L.GlobalMaxPooling2D()(x))
            x = L.MaxPooling2D(2)(x)
        up = L.UpSampling2D(2)(L.Dropout(0.5)(x))
        up = L.Conv2D(4, 2, padding="same", activation="relu")(up)
        joined = L.Concatenate()([*pooled, L.GlobalAveragePooling2D()(up)])
        return K.Model(pixels, L.Dense(1, activation="sigmoid")(joined))

    def deepbind() -> Any:
        bases = K.Input((60, 4), name="sequence")
        x = L.Conv1D(8, 11, activation="relu")(bases)
        x = L.Concatenate()([L.GlobalMaxPooling1D()(x), L.GlobalAveragePooling1D()(x)])
        x = L.Dropout(0.5)(L.Dense(8, activation="relu")(x))
        return K.Model(bases, L.Dense(1, activation="sigmoid")(x))

    def danq() -> Any:
        return K.Sequential(
            [
                K.Input((80, 4)),
                L.Conv1D(8, 9, activation="relu", padding="valid"),
                L.MaxPooling1D(5, 5),
                L.Dropout(0.2),
                L.Bidirectional(L.LSTM(4, return_sequences=True)),
                L.Dropout(0.5),
                L.Flatten(),
                L.Dense(12, activation="relu"),
                L.Dense(4, activation="sigmoid"),
            ]
        )

    def gru_d() -> Any:
        values, mask = K.Input((12, 5), name="sequence"), K.Input((12,), name="mask")
        static = K.Input((3,), name="static")
        seen = L.Reshape((12, 1))(mask)
        decay = L.Activation("exponential")(
            L.ReLU(max_value=4.0)(L.TimeDistributed(L.Dense(5))(L.Concatenate()([values, seen])))
        )
        x = L.Concatenate()([L.Multiply()([values, decay]), L.Multiply()([values, seen]), seen])
        x = L.GRU(6, dropout=0.1)(x)
        x = L.Concatenate()([x, L.Dense(4, activation="relu")(static)])
        return K.Model([values, mask, static], L.Dense(1, activation="sigmoid")(x))

    def lstm_classifier() -> Any:
        return K.Sequential(
            [
                K.Input((20,), dtype="int32"),
                L.Embedding(30, 6),
                L.SpatialDropout1D(0.2),
                L.LSTM(6, return_sequences=True),
                L.LSTM(5),
                L.LayerNormalization(),
                L.Dense(3),
                L.Softmax(),
            ]
        )

    def efficientnet() -> Any:
        pixels = K.Input((32, 32, 3))
        x = L.Normalization()(L.Rescaling(1 / 255)(pixels))
        x = L.Conv2D(8, 3, strides=2, padding="valid", use_bias=False)(L.ZeroPadding2D(((0, 1), (0, 1)))(x))
        x = L.Activation("swish")(L.BatchNormalization()(x))
        for filters, size, strides, expand in ((8, 3, 1, 1), (12, 5, 2, 2), (12, 5, 1, 2)):
            before, wide = x, x.shape[-1] * expand
            if expand > 1:
                x = conv_norm(x, wide, 1, activation="swish")
            x = L.DepthwiseConv2D(size, strides=strides, padding="same", use_bias=False)(x)
            x = L.Activation("swish")(L.BatchNormalization()(x))
            squeezed = L.Reshape((1, 1, wide))(L.GlobalAveragePooling2D()(x))
            squeezed = L.Conv2D(2, 1, activation="swish")(squeezed)
            x = L.Multiply()([x, L.Conv2D(wide, 1, activation="sigmoid")(squeezed)])
            x = L.BatchNormalization()(L.Conv2D(filters, 1, padding="same", use_bias=False)(x))
            if strides == 1 and before.shape[-1] == filters:
                x = L.Add()([L.Dropout(0.2, noise_shape=None)(x), before])
        x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
        return K.Model(pixels, L.Dense(4, activation="softmax")(x))

    def densenet() -> Any:
        pixels = K.Input((32, 32, 3))
        x = conv_norm(pixels, 8, 3, 2)
        for _ in range(2):
            for _ in range(3):
                y = L.Activation("relu")(L.BatchNormalization()(x))
                y = conv_norm(y, 8, 1)
                x = L.Concatenate(axis=-1)([x, L.Conv2D(4, 3, padding="same", use_bias=False)(y)])
            x = conv_norm(x, x.shape[-1] // 2, 1)
            x = L.AveragePooling2D(2, strides=2)(x)
        return K.Model(pixels, L.Dense(2, activation="softmax")(L.GlobalAveragePooling2D()(x)))

    def nested() -> Any:
        base = K.Sequential([K.Input((16, 16, 3)), L.Conv2D(8, 3, activation="relu"), L.MaxPooling2D()], name="base")
        inner = K.Input((7, 7, 8))
        body = K.Model(inner, L.GlobalAveragePooling2D()(L.BatchNormalization()(inner)), name="body")
        pixels = K.Input((16, 16, 3))
        return K.Model(pixels, L.Dense(2)(body(base(pixels))))

    return {
        "lenet": lenet, "vgg": vgg, "resnet": resnet, "unet_encoder": unet_encoder, "deepbind": deepbind, "danq": danq,
        "gru_d": gru_d, "lstm_classifier": lstm_classifier, "efficientnet": efficientnet, "densenet": densenet,
        "nested": nested,
    }  # fmt: skip


def mnist_cnn(K: Any) -> Any:
    """The reference Keras example for MNIST, as it stands before training."""
    L = K.layers
    return K.Sequential(
        [
            K.Input((28, 28, 1)),
            L.Conv2D(32, 3, activation="relu"),
            L.MaxPooling2D(2),
            L.Conv2D(64, 3, activation="relu"),
            L.MaxPooling2D(2),
            L.Conv2D(64, 3, activation="relu"),
            L.Flatten(),
            L.Dense(64, activation="relu"),
            L.Dense(10, activation="softmax"),
        ]
    )
