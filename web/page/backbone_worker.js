// The worker's messages: first {settings, tensors} of a backbone, then {id, styles}; it answers {id, values}.

let backbone = null;

onmessage = ({ data }) => {
  if (data.settings) {
    backbone = new TriplaneBackbone(data.settings, data.tensors);
    return;
  }
  const { values } = backbone.planes(data.styles);
  postMessage({ id: data.id, values }, [values.buffer]);
};
