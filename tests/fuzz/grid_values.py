"""Values for the generated grids: right, nearly right and wrong ones."""

from tests.fuzz import nasty

RAW = (
    ".nan", ".inf", "-.inf", "1e400", "-1", "0", "1.5", "0x1F", "0o17", "1:30", "~", "y", "off", "=", "<<", '""',
    '"\\ud800"', '"\\0"', '"\\x07"', '"\\udfff\\ud800"', "&a [*a]", "&b {x: *b}", "*undefined", "{a: 1, a: 2}", "[[]]",
    "[[[]]]", "{}", "[]", "[~]", "[{}]", "[1, [2, [3]]]", "2001-99-99", "2001-01-01", "2001-01-01T99:99:99Z", "!!bool x",
    "!!int x", "!!float x", "!!timestamp x", "!!binary x", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!null x", "!!str 5", "!unknown 5", "!!map [a]", "!!seq {a: 1}",
    "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "? [a, b]\n", "{[a]: 1}", "{? {a: 1} : 2}",
    "{null: 1}", "{1: 2}", "|\n  a\n  b", ">\n  a", "'", '"', "@x", "`x", "%x", "- a", "a: b: c", "[", "{", "\x01", "\t",
    "\ufeff", "é", "9" * 30, nasty.LONG_INTEGER, "[" * 3000, "[" * 60 + "]" * 60, "{a: " * 60 + "1" + "}" * 60,
    "1e" + "9" * 4000, "[none, none]", "[1, 2]", "[.nan]", "true", "[true]", "1000000000", "18446744073709551616",
    "-9223372036854775809", "1.0", "1e3", ".5", "[uniform]", "uniform", "[200]", "[0, 999]", "[1000]",
)  # fmt: skip

AXES = {
    "datasets": ("photos", "faces", "folder:nowhere", "cifar10", "photos[x=1]", "photos:x", "nothing"),
    "models": (
        "tiny", "tiny:trained", "tiny[steps=16]", "tiny[steps=1]", "tiny[steps=99999999999]", "small:trained[prior=none]",
        "./x", "tiny[prior=tiny:trained]", "tiny[prior=tiny]", "tiny[schedule=x]",
        "tiny[prediction=v_prediction,schedule=cosine]",
    ),
    "defenses": (
        "none", "clipping[clip=1,2]", "clipping[clip=nan]", "dp_sgd[noise_multiplier=inf]", "none+none",
        "quantisation[bits=0,8]",
        "gradient_pruning[keep=0.1]+private_noise", "gradient_pruning[keep=-1]", "withhold[layers=conv_out]",
        "private_timestep",
        "timestep_range[least=5000]", "gaussian_noise[ratio=1e999]", "secure_aggregation", "withhold[layers=x]",
        "laplace_noise",
    ),
    "attacks": (
        "constant_image", "random_guess", "oracle", "prior_sample", "constant_image[x=1]", "gidm_plus[evaluations=0]", "dgl",
    ),
}  # fmt: skip

SCENARIO = {
    "image_size": (8, 16, 20, 1024, 7, 2048),
    "batch_size": (1, 2, 3, 10**6),
    "local_steps": (1, 2, 10**9),
    "local_lr": (0.01, 1e-300, 0, -1),
    "optimiser": ("sgd", "adam", "adamw", "amsgrad", "Adam"),
    "beta1": (0.9, 0, 1),
    "beta2": (0.999, 0, 1),
    "eps": (1e-8, 0, 1e-300),
    "weight_decay": (0, 0.01, -1),
    "max_norm": (None, 1, 0),
    "state": ("fresh", "kept", "Kept"),
    "round": (1, 2, 0, 10**9),
    "accumulation": (1, 2, 0, 10**9),
    "client_images": (None, 1, 4, 0, 10**9),
    "epochs": (1, 2, 0, 10**9),
    "augment": ("none", "flip", "flip_crop", "crop"),
    "dropout": (0, 0.5, 1),
    "min_snr": (None, 5, 1e-300, 0),
    "ema": (None, 0, 0.999, 1),
    "sent_parameters": (None, "conv", "", "\u202e", 5),
    "message": ("update", "weights", "gradient"),
    "precision": ("float32", "float16", "bfloat16", "secaggplus", "float64"),
    "clients": (1, 2, 10**9),
    "order": ("known", "known", "unknown", "Known"),
    "timesteps": ("uniform", 0, 200, 999, 1000, -1, [1, 2], [5], []),
    "sampling": ("fixed", "fixed", "poisson"),
    "sample_rate": (1.0, 1, 0.5, 0.3, 1e-9, 1e-300, 0, 2),
}

SCALARS = {
    "title": ("t", "", "x" * 5000, "a\nb", "\u202e", 5),
    "victims": (1, 0, 2, 10**5, 10**9),
    "trials": (1, 2, 0, 1000, 10**9),
    "seed": (0, -1, 2**31, 2**63, 2**64, 1.5),
    "evaluations": (1, 0, 5, 10**12, None),
    "success_db": (30.0, 30, -5, 1e300, "30"),
}

SETTINGS = (
    "attack.dlg.evaluations", "attack.dlg.restarts", "attack.adam_l2.lr", "attack.gidm.preset", "defense.clipping.clip",
    "attack.x.y", "x", "attack.constant_image.x", "dataset.photos.x", "attack..evaluations", ".", "...",
    "defense.dp_sgd.noise_multiplier", "attack.oracle.x",
)  # fmt: skip
