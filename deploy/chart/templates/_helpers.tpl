{{- define "kyc.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "kyc.labels" -}}
app.kubernetes.io/name: kyc-pipeline
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kyc.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag }}{{ end }}
{{- end -}}

{{- define "kyc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "kyc.containerSecurity" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
{{- end -}}

{{/* What the containers of all long-running processes share. */}}
{{- define "kyc.container" -}}
image: {{ include "kyc.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom:
  - configMapRef: { name: {{ include "kyc.name" . }}-env }
  - secretRef: { name: {{ .Values.existingSecret }} }
securityContext: {{- include "kyc.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: tmp, mountPath: /tmp }
  - { name: dagster, mountPath: /etc/dagster, readOnly: true }
{{- end -}}

{{- define "kyc.volumes" -}}
- { name: tmp, emptyDir: {} }
- { name: dagster, configMap: { name: {{ include "kyc.name" . }}-dagster } }
{{- end -}}

{{/* A change of the configuration restarts the pods. */}}
{{- define "kyc.checksums" -}}
kyc/configuration: {{ include "kyc.instance" . | cat (toJson .Values.env) | sha256sum }}
{{- end -}}

{{/* dagster.yaml: the file of deploy/, the run launcher, and what the values change. */}}
{{- define "kyc.instance" -}}
{{- $launcher := include "kyc.launcher" . | fromYaml -}}
{{- $file := .Files.Get "dagster.yaml" | fromYaml -}}
{{- mergeOverwrite $file $launcher .Values.dagster | toYaml -}}
{{- end -}}

{{- define "kyc.launcher" -}}
run_launcher:
  module: dagster_k8s
  class: K8sRunLauncher
  config:
    job_namespace: {{ .Release.Namespace }}
    service_account_name: {{ include "kyc.name" . }}-runs
    job_image: {{ include "kyc.image" . }}
    image_pull_policy: {{ .Values.image.pullPolicy }}
    image_pull_secrets: {{- range .Values.image.pullSecrets }}
      - name: {{ . }}
    {{- else }} []{{ end }}
    dagster_home: /etc/dagster
    instance_config_map: {{ include "kyc.name" . }}-dagster
    env_config_maps: [{{ include "kyc.name" . }}-env]
    env_secrets: [{{ .Values.existingSecret }}]
    volumes:
      - { name: tmp, emptyDir: {} }
      {{- if .Values.published.enabled }}
      - { name: published, persistentVolumeClaim: { claimName: {{ include "kyc.name" . }}-published } }
      {{- end }}
    volume_mounts:
      - { name: tmp, mountPath: /tmp }
      {{- if .Values.published.enabled }}
      - { name: published, mountPath: /data }
      {{- end }}
    labels: {{- include "kyc.labels" . | nindent 6 }}
      app.kubernetes.io/component: run
    resources: {{- toYaml .Values.runs.resources | nindent 6 }}
    security_context: {{- include "kyc.containerSecurity" . | nindent 6 }}
    # A run that failed has said so in Dagster; the pod's own failure is for crashes.
    fail_pod_on_run_failure: false
    run_k8s_config:
      pod_spec_config:
        termination_grace_period_seconds: {{ .Values.runs.terminationGracePeriodSeconds }}
        security_context: {{- include "kyc.podSecurity" . | nindent 10 }}
      job_spec_config:
        ttl_seconds_after_finished: {{ mul .Values.runs.keepJobsDays 86400 }}
{{- end -}}
