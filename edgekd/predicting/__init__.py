"""Latency that nobody measured: a network's work by operator, a device's costs from timed networks, and an interval around their product.

work.work_of(model)                       an ONNX file -> its operators' shapes
fitting.fit(rows, prior)                  timed networks of one device -> Calibration
predict.predict(work, calibration)        -> Prediction, of kind `calibrated`, `transferred` or `bound`
probes.models()                           small networks to time on a device whose costs nobody published
shipped.load(name)                        calibrations that come with edgekd, from published measurements
"""
